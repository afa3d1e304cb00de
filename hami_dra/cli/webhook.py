"""``hami-dra webhook``: answer admission reviews."""

import asyncio
from pathlib import Path

import click

from hami_dra.cli.address import Address
from hami_dra.cli.configfile import config_option, read_settings


@click.command()
@click.option(
    "--cert-dir",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Directory with tls.crt and tls.key; changes are followed.",
)
@click.option(
    "--listen", type=Address(), default=":8443", show_default=True, help="Reviews, HTTPS."
)
@click.option(
    "--health-listen",
    type=Address(),
    default=":8080",
    show_default=True,
    help="/healthz, /readyz and /metrics, HTTP.",
)
@click.option(
    "--kubeconfig",
    envvar="KUBECONFIG",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="API server outside a pod; inside, the ServiceAccount is used.",
)
@config_option
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
)
def webhook(
    *,
    cert_dir: Path,
    listen: tuple[str, int],
    health_listen: tuple[str, int],
    kubeconfig: Path | None,
    config: Path | None,
    log_level: str,
) -> None:
    """Rewrite pods with GPU keys and check claims, as an admission webhook."""
    from hami_dra.service.logs import configure_logs  # noqa: PLC0415 - keeps --help fast
    from hami_dra.webhook.process import Settings, run  # noqa: PLC0415 - keeps --help fast

    configure_logs(log_level)
    asyncio.run(
        run(
            Settings(
                certificate_dir=cert_dir,
                host=listen[0],
                port=listen[1],
                health_host=health_listen[0],
                health_port=health_listen[1],
                kubeconfig=kubeconfig,
                admission=read_settings(config),
            )
        )
    )
