"""``hami-dra webhook``: answer admission reviews."""

import asyncio
from pathlib import Path

import click

from hami_dra.cli.address import Address
from hami_dra.cli.configfile import config_option, read_settings
from hami_dra.cli.options import health_option, kubeconfig_option, log_level_option


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
    "--leave-seconds",
    type=click.FloatRange(min=0, max=20),
    default=5.0,
    show_default=True,
    help="How long reviews are answered after SIGTERM, until no Service sends any.",
)
@health_option
@kubeconfig_option
@config_option
@log_level_option
def webhook(
    *,
    cert_dir: Path,
    listen: tuple[str, int],
    health_listen: tuple[str, int],
    leave_seconds: float,
    kubeconfig: Path | None,
    config: Path | None,
    log_level: str,
) -> None:
    """Rewrite pods with GPU keys and check claims, as an admission webhook."""
    from hami_dra.service.logs import configure_logs  # noqa: PLC0415 - keeps --help fast
    from hami_dra.webhook.process import Settings, run  # noqa: PLC0415 - keeps --help fast

    configure_logs(log_level, batched=True)
    asyncio.run(
        run(
            Settings(
                certificate_dir=cert_dir,
                host=listen[0],
                port=listen[1],
                health_host=health_listen[0],
                health_port=health_listen[1],
                leave_seconds=leave_seconds,
                kubeconfig=kubeconfig,
                admission=read_settings(config),
            )
        )
    )
