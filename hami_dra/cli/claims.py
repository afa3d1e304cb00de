"""``hami-dra claims``: the shares that are handed out, and other limits for them."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hami_dra.cli.options import kubeconfig_option
from hami_dra.contract.errors import HamiDraError, RetryError, UserError
from hami_dra.contract.limits import LimitChange, digest_limits, encode_limits
from hami_dra.contract.names import ANNOTATION_LIMITS

if TYPE_CHECKING:
    from hami_dra.kube import Api
    from hami_dra.policy.claimview import ClaimView

_ATTEMPTS = 5
_LOOK_SECONDS = 0.5
_OUTPUT = click.option(
    "-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True
)


@click.group()
def claims() -> None:
    """Show claims with cards of ours, and change the limits of their shares."""


@claims.command("list")
@click.option("-n", "--namespace", help="One namespace; else all.")
@_OUTPUT
@kubeconfig_option
def list_claims(*, namespace: str | None, output: str, kubeconfig: Path | None) -> None:
    """List shares, one a line."""
    views = asyncio.run(_list(namespace, kubeconfig))
    if output == "json":
        _print_json(views)
        return
    # Imported here: --help needs nothing of it.
    from hami_dra.cli.claimtext import render_list  # noqa: PLC0415

    click.echo(render_list(views))


@claims.command("show")
@click.argument("claim", metavar="NAMESPACE/CLAIM")
@_OUTPUT
@kubeconfig_option
def show_claim(*, claim: str, output: str, kubeconfig: Path | None) -> None:
    """Show one claim: who uses it, what is granted, enforced and refused."""
    view = asyncio.run(_show(claim, kubeconfig))
    if output == "json":
        _print_json(view)
        return
    from hami_dra.cli.claimtext import render_claim  # noqa: PLC0415

    click.echo(render_claim(view))


@claims.command("set-limit")
@click.argument("claim", metavar="NAMESPACE/CLAIM")
@click.option("--request", help="Name in the claim's spec; needed where there are several.")
@click.option("--memory-mib", type=click.IntRange(min=1), help="MiB on each card of the request.")
@click.option(
    "--cores", type=click.IntRange(0, 100), help="Percent of each card's compute; 0: not limited."
)
@click.option("--reset", is_flag=True, help="Back to what was granted.")
@click.option(
    "--wait-seconds",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    help="How long to wait for the node to say that the limits hold.",
)
@kubeconfig_option
def set_limit(
    *,
    claim: str,
    request: str | None,
    memory_mib: int | None,
    cores: int | None,
    reset: bool,
    wait_seconds: float,
    kubeconfig: Path | None,
) -> None:
    """Change the limits of a share while programs run on it.

    Up to what the claim consumes of its cards. Memory that programs have stays theirs; what is
    above the new limit cannot be had again. Needs the right to patch the claim.
    """
    if reset == (memory_mib is not None or cores is not None):
        raise click.UsageError("say --memory-mib, --cores or both; or --reset alone")
    change = None if reset else LimitChange(memory_mib=memory_mib, cores_percent=cores)
    click.echo(asyncio.run(_set_limit(claim, request, change, wait_seconds, kubeconfig)))


def _print_json(value: object) -> None:
    import msgspec  # noqa: PLC0415

    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def _split(claim: str) -> tuple[str, str]:
    namespace, slash, name = claim.partition("/")
    if not slash or not namespace or not name or "/" in name:
        raise click.UsageError(f"{claim!r} is not NAMESPACE/CLAIM")
    return namespace, name


async def _list(namespace: str | None, kubeconfig: Path | None) -> list["ClaimView"]:
    from hami_dra.kube import Api, connect  # noqa: PLC0415
    from hami_dra.kube.objects import CLAIMS  # noqa: PLC0415
    from hami_dra.policy.claimview import view_claim  # noqa: PLC0415

    views = []
    async with connect(kubeconfig) as session:
        async for page, _ in Api(session).pages(CLAIMS, namespace=namespace):
            views += [view for item in page if (view := view_claim(item)) is not None]
    return sorted(views, key=lambda view: (view.namespace, view.name))


async def _show(claim: str, kubeconfig: Path | None) -> "ClaimView":
    from hami_dra.kube import Api, connect  # noqa: PLC0415

    namespace, name = _split(claim)
    async with connect(kubeconfig) as session:
        view, _ = await _read(Api(session), namespace, name)
    return view


async def _read(api: "Api", namespace: str, name: str) -> tuple["ClaimView", str]:
    """Return a claim's view and resourceVersion."""
    from hami_dra.kube.objects import CLAIMS  # noqa: PLC0415
    from hami_dra.policy.claimview import view_claim  # noqa: PLC0415

    try:
        claim = await api.get(CLAIMS, name, namespace=namespace)
    except ValueError as error:
        raise UserError(str(error)) from error
    view = view_claim(claim)
    if view is None:
        raise UserError(f"claim {namespace}/{name} has no card of ours allocated")
    return view, str(claim["metadata"].get("resourceVersion", ""))


async def _set_limit(
    claim: str,
    request: str | None,
    change: LimitChange | None,
    wait_seconds: float,
    kubeconfig: Path | None,
) -> str:
    from hami_dra.kube import Api, connect  # noqa: PLC0415

    namespace, name = _split(claim)
    async with connect(kubeconfig) as session:
        api = Api(session)
        text, view = await _ask(api, namespace, name, request, change)
        label = f"claim {namespace}/{name}"
        if not view.pods:
            return f"{label}: asked for; no pod uses it, so it holds from the next one on"
        if wait_seconds == 0:
            return f"{label}: asked for"
        return f"{label}: {await _wait(api, view, text, wait_seconds)}"


async def _ask(
    api: "Api", namespace: str, name: str, request: str | None, change: LimitChange | None
) -> tuple[str | None, "ClaimView"]:
    """Write the annotation; return its text and the claim."""
    from hami_dra.kube import ConflictError  # noqa: PLC0415
    from hami_dra.kube.objects import CLAIMS  # noqa: PLC0415
    from hami_dra.policy.claimview import plan_wish  # noqa: PLC0415

    for _ in range(_ATTEMPTS):
        view, version = await _read(api, namespace, name)
        wish = plan_wish(view, request, change)
        text = encode_limits(wish) if wish else None
        # The version: others' requests are in the same annotation.
        metadata = {"resourceVersion": version, "annotations": {ANNOTATION_LIMITS: text}}
        try:
            await api.patch(CLAIMS, name, {"metadata": metadata}, namespace=namespace)
        except ConflictError:
            continue
        return text, view
    raise RetryError(f"claim {namespace}/{name} changes all the time; try again")


async def _wait(api: "Api", view: "ClaimView", text: str | None, wait_seconds: float) -> str:
    """Return what the node says once it has read the annotation.

    Raises:
        HamiDraError: It refuses, or says nothing in time.
    """
    wanted = "" if text is None else digest_limits(text)
    node = view.shares[0].node
    try:
        async with asyncio.timeout(wait_seconds):
            while True:
                now, _ = await _read(api, view.namespace, view.name)
                if now.uid != view.uid:
                    raise UserError(f"claim {view.namespace}/{view.name} was replaced")
                if all(share.limits_seen == wanted and share.ready for share in now.shares):
                    break
                await asyncio.sleep(_LOOK_SECONDS)
    except TimeoutError as error:
        raise HamiDraError(
            f"claim {view.namespace}/{view.name}: asked for, but node {node} has not answered "
            f"within {wait_seconds:g} s; is its hami-dra node process running?"
        ) from error
    refused = next((share.limits_refused for share in now.shares if share.limits_refused), "")
    if refused:
        raise UserError(f"node {node} refuses: {refused}")
    return "; ".join(
        f"{share.request} on {share.uuid}: {share.memory_mib} MiB, "
        + (f"{share.cores_percent} % compute" if share.cores_percent else "compute not limited")
        for share in now.shares
    )
