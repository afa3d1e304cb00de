"""Options that mean the same for every process in a cluster."""

from pathlib import Path

import click

from hami_dra.cli.address import Address

health_option = click.option(
    "--health-listen",
    type=Address(),
    default=":8080",
    show_default=True,
    help="/healthz, /readyz and /metrics, HTTP.",
)

kubeconfig_option = click.option(
    "--kubeconfig",
    envvar="KUBECONFIG",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="API server outside a pod; inside, the ServiceAccount is used.",
)

log_level_option = click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
)
