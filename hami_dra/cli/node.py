"""``hami-dra node``: the DaemonSet's process."""

import asyncio
from pathlib import Path

import click

from hami_dra.cli.address import Address
from hami_dra.node.preparer import no_step
from hami_dra.node.settings import NodeSettings, parse_inject_path
from hami_dra.service.logs import configure_logs

_DIRECTORY = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)
_DEFAULT = NodeSettings(node_name="-")


@click.command(context_settings={"show_default": True})
@click.option(
    "--node-name", envvar="NODE_NAME", required=True, help="Name of this node's Node object."
)
@click.option(
    "--pod-uid",
    envvar="POD_UID",
    default=_DEFAULT.pod_uid,
    metavar="UID",
    help="This pod's UID, if another instance may run beside it (maxSurge); else the only one.",
)
@click.option(
    "--kubeconfig",
    envvar=["HAMI_DRA_KUBECONFIG", "KUBECONFIG"],
    type=_FILE,
    help="For a process outside the cluster; else the pod's ServiceAccount.",
)
@click.option(
    "--kubelet-dir",
    envvar="HAMI_DRA_KUBELET_DIR",
    type=_DIRECTORY,
    default=_DEFAULT.kubelet_dir,
    help="The kubelet's --root-dir.",
)
@click.option(
    "--cdi-dir",
    envvar="HAMI_DRA_CDI_DIR",
    type=_DIRECTORY,
    default=_DEFAULT.cdi_dir,
    help="Where CDI files are written; the container runtime must read it.",
)
@click.option(
    "--cdi-search-dir",
    "cdi_search_dirs",
    envvar="HAMI_DRA_CDI_SEARCH_DIR",
    type=_DIRECTORY,
    multiple=True,
    default=_DEFAULT.cdi_search_dirs,
    help="Where others' CDI files are looked up besides --cdi-dir. Repeatable.",
)
@click.option(
    "--state-dir",
    envvar="HAMI_DRA_STATE_DIR",
    type=_DIRECTORY,
    default=_DEFAULT.state_dir,
    help="Ledger, grants, regions, libraries; must survive a reboot.",
)
@click.option(
    "--driver-root",
    envvar="HAMI_DRA_DRIVER_ROOT",
    type=_DIRECTORY,
    default=_DEFAULT.driver_root,
    help="Where the NVIDIA driver is, as this process sees it.",
)
@click.option(
    "--host-driver-root",
    envvar="HAMI_DRA_HOST_DRIVER_ROOT",
    type=_DIRECTORY,
    help="The same as the container runtime sees it; else the same path.",
)
@click.option(
    "--sysfs",
    envvar="HAMI_DRA_SYSFS",
    type=_DIRECTORY,
    default=_DEFAULT.sysfs,
    help="Where the kernel shows the PCI bus.",
)
@click.option(
    "--procfs",
    envvar="HAMI_DRA_PROCFS",
    type=_DIRECTORY,
    default=_DEFAULT.procfs,
    help="Where the kernel shows the rights to MIG instances.",
)
@click.option(
    "--cgroups",
    envvar="HAMI_DRA_CGROUPS",
    type=_DIRECTORY,
    default=_DEFAULT.cgroups,
    help="Where the host's control groups (version 2) are; for limits of the driver's own.",
)
@click.option(
    "--mig-dynamic",
    envvar="HAMI_DRA_MIG_DYNAMIC",
    multiple=True,
    metavar="UUID|INDEX|all",
    help="A card to divide into MIG instances as claims need them. Repeatable.",
)
@click.option(
    "--libvgpu",
    envvar="HAMI_DRA_LIBVGPU",
    type=_FILE,
    default=_DEFAULT.libvgpu,
    help="The library that containers get.",
)
@click.option(
    "--config",
    envvar="HAMI_DRA_NODE_CONFIG",
    type=_FILE,
    help="How cards are offered and judged, by node, in HAMi's words; read again when it changes.",
)
@click.option(
    "--split-count",
    envvar="HAMI_DRA_SPLIT_COUNT",
    type=click.IntRange(min=1),
    default=_DEFAULT.split_count,
    help="Shares that may exist on one card at a time, where --config does not say it.",
)
@click.option(
    "--inject-path",
    "inject_paths",
    envvar="HAMI_DRA_INJECT_PATH",
    multiple=True,
    metavar="HOST[:CONTAINER][:rw]",
    help="More of the host, files or devices, for every container with a card. Repeatable.",
)
@click.option(
    "--health-listen",
    envvar="HAMI_DRA_HEALTH_LISTEN",
    type=Address(),
    default=f"{_DEFAULT.health_host}:{_DEFAULT.health_port}",
    help="/healthz, /readyz and /metrics, HTTP; port 0: any free one (it is logged).",
)
@click.option(
    "--prepare-budget-seconds",
    envvar="HAMI_DRA_PREPARE_BUDGET_SECONDS",
    type=click.FloatRange(0, 35),
    default=_DEFAULT.prepare_budget_seconds,
    help="How long Prepare retries transient faults; the kubelet waits 45 s.",
)
@click.option(
    "--drain-seconds",
    envvar="HAMI_DRA_DRAIN_SECONDS",
    type=click.FloatRange(min=0),
    default=_DEFAULT.drain_seconds,
    help="How long running calls may take at the end.",
)
@click.option(
    "--rediscover-seconds",
    envvar="HAMI_DRA_REDISCOVER_SECONDS",
    type=click.FloatRange(min=1),
    default=_DEFAULT.rediscover_seconds,
    help="How often the cards are looked at again.",
)
@click.option(
    "--repair-seconds",
    envvar="HAMI_DRA_REPAIR_SECONDS",
    type=click.FloatRange(min=0.1),
    default=_DEFAULT.repair_seconds,
    help="How often CDI files are compared with the ledger.",
)
@click.option(
    "--claim-poll-seconds",
    envvar="HAMI_DRA_CLAIM_POLL_SECONDS",
    type=click.FloatRange(min=0.1),
    default=_DEFAULT.claim_poll_seconds,
    help="How often each prepared claim is read again.",
)
@click.option(
    "--audit-seconds",
    envvar="HAMI_DRA_AUDIT_SECONDS",
    type=click.FloatRange(min=0),
    default=_DEFAULT.audit_seconds,
    help="Between two looks at what processes use of the cards; 0: none.",
)
@click.option(
    "--audit-context-mib",
    envvar="HAMI_DRA_AUDIT_CONTEXT_MIB",
    type=click.IntRange(min=0),
    default=_DEFAULT.audit_context_mib,
    help="What each process may have beside its grant, for the driver's own use.",
)
@click.option(
    "--audit-evict/--no-audit-evict",
    envvar="HAMI_DRA_AUDIT_EVICT",
    default=_DEFAULT.audit_evict,
    help="Evict pods that use more of a card than they were granted.",
)
@click.option(
    "--log-level",
    envvar="HAMI_DRA_LOG_LEVEL",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
)
@click.pass_context
def node(
    context: click.Context,
    /,
    log_level: str,
    inject_paths: tuple[str, ...],
    health_listen: tuple[str, int],
    **options: object,
) -> None:
    """Serve this node's cards to the kubelet and publish them."""
    # Imported here: gRPC and NVML, which `--help` and the other commands never need.
    from hami_dra.node.app import run_node  # noqa: PLC0415

    configure_logs(log_level)
    settings = NodeSettings(
        inject_paths=tuple(parse_inject_path(text) for text in inject_paths),
        health_host=health_listen[0],
        health_port=health_listen[1],
        **options,  # type: ignore[arg-type]  # click made each of its declared type
    )
    asyncio.run(run_node(settings, step=context.obj or no_step))
