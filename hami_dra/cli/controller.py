"""``hami-dra controller``: what must happen once per cluster."""

import asyncio
from pathlib import Path

import click

from hami_dra.cli.configfile import config_option, read_settings
from hami_dra.cli.options import health_option, kubeconfig_option, log_level_option


@click.group()
def controller() -> None:
    """Do what must happen once per cluster."""


def _read_service(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> tuple[str, str] | None:
    del ctx, param
    if value is None:
        return None
    namespace, slash, name = value.partition("/")
    if not slash or not namespace or not name or "/" in name:
        raise click.BadParameter(f"{value!r} is not NAMESPACE/NAME")
    return namespace, name


@controller.command()
@click.option(
    "--cert-dir",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Where certificates are made and kept; the webhook reads tls.crt and tls.key there.",
)
@click.option("--webhook-url", default="", help="Webhook outside the cluster: https://HOST:PORT.")
@click.option(
    "--webhook-service",
    callback=_read_service,
    help="Webhook inside the cluster: NAMESPACE/NAME of its Service "
    "[default: hami-dra/hami-dra-webhook].",
)
@kubeconfig_option
@config_option
@log_level_option
def bootstrap(
    *,
    cert_dir: Path,
    webhook_url: str,
    webhook_service: tuple[str, str] | None,
    kubeconfig: Path | None,
    config: Path | None,
    log_level: str,
) -> None:
    """Make certificates and apply the DeviceClass and the webhook configurations, once."""
    from hami_dra.controller.bootstrap import Settings, run  # noqa: PLC0415 - keeps --help fast
    from hami_dra.controller.manifests import WebhookAddress  # noqa: PLC0415 - keeps --help fast
    from hami_dra.service.logs import configure_logs  # noqa: PLC0415 - keeps --help fast

    if webhook_url and webhook_service:
        raise click.UsageError("--webhook-url and --webhook-service exclude each other")
    configure_logs(log_level)
    if webhook_service is None:
        address = WebhookAddress(url=webhook_url)
    else:
        address = WebhookAddress(namespace=webhook_service[0], name=webhook_service[1])
    settings = Settings(
        certificate_dir=cert_dir,
        address=address,
        kubeconfig=kubeconfig,
        admission=read_settings(config),
    )
    asyncio.run(run(settings))


@controller.command("run")
@health_option
@click.option(
    "--lease-namespace",
    default="hami-dra",
    show_default=True,
    help="Where the Lease is that elects one leader among the replicas.",
)
@click.option(
    "--template-age",
    type=click.FloatRange(min=0, min_open=True),
    default=3600.0,
    show_default=True,
    metavar="SECONDS",
    help="How old and for how long unused a ResourceClaimTemplate must be to be deleted.",
)
@kubeconfig_option
@config_option
@log_level_option
def run_controller(
    *,
    health_listen: tuple[str, int],
    lease_namespace: str,
    template_age: float,
    kubeconfig: Path | None,
    config: Path | None,
    log_level: str,
) -> None:
    """Delete unused ResourceClaimTemplates, and make those again that pods wait for."""
    from hami_dra.controller.process import Settings, run  # noqa: PLC0415 - keeps --help fast
    from hami_dra.service.logs import configure_logs  # noqa: PLC0415 - keeps --help fast

    configure_logs(log_level)
    settings = Settings(
        health_host=health_listen[0],
        health_port=health_listen[1],
        lease_namespace=lease_namespace,
        template_age_seconds=template_age,
        kubeconfig=kubeconfig,
        admission=read_settings(config),
    )
    asyncio.run(run(settings))


@controller.command()
@config_option
def manifests(*, config: Path | None) -> None:
    """Print the objects that bootstrap applies, without an address or CA of the webhook."""
    # Imported here, so that --help stays fast.
    import yaml  # noqa: PLC0415

    from hami_dra.controller.manifests import WebhookAddress, render_objects  # noqa: PLC0415

    objects = [body for _, body in render_objects(WebhookAddress(), b"", read_settings(config))]
    click.echo(yaml.safe_dump_all(objects, sort_keys=False), nl=False)
