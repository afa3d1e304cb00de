"""``hami-dra explain``: why a pod waits for cards, or which ones it has."""

import asyncio
from pathlib import Path

import click

from hami_dra.cli.configfile import config_option, read_settings
from hami_dra.cli.options import kubeconfig_option
from hami_dra.contract.errors import FatalError, UserError
from hami_dra.contract.settings import AdmissionSettings


@click.command()
@click.argument("target", metavar="POD|claim/NAME")
@click.option("-n", "--namespace", default="default", show_default=True)
@click.option(
    "-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True
)
@click.option("--all", "everything", is_flag=True, help="Every node, not only the nearest ones.")
@kubeconfig_option
@config_option
def explain(
    *,
    target: str,
    namespace: str,
    output: str,
    everything: bool,
    kubeconfig: Path | None,
    config: Path | None,
) -> None:
    """Say, node by node and card by card, why a pod's cards cannot be allocated.

    Reads the pod, its claims, the published devices and what other claims have taken, and
    evaluates the same selectors as the scheduler. Changes nothing. The exit code is 0 if the cards
    are allocated or could be, else 3.
    """
    kind, slash, name = target.rpartition("/")
    if kind not in ({"pod", "claim"} if slash else {""}):
        raise click.UsageError(f"{target!r} is neither POD nor claim/NAME")
    settings = read_settings(config)
    text, fine = asyncio.run(
        _run(
            kind, name, namespace, kubeconfig, settings, json=output == "json", all_nodes=everything
        )
    )
    click.echo(text)
    if not fine:
        raise SystemExit(3)


async def _run(
    kind: str,
    name: str,
    namespace: str,
    kubeconfig: Path | None,
    settings: AdmissionSettings,
    *,
    json: bool,
    all_nodes: bool,
) -> tuple[str, bool]:
    """Return what to print, and whether the cards are or could be there."""
    # Imported here: they need more than the other commands, and --help nothing of it.
    try:
        import msgspec  # noqa: PLC0415

        from hami_dra.cli.explaintext import render_report  # noqa: PLC0415
        from hami_dra.kube import Api, connect  # noqa: PLC0415
        from hami_dra.kube.situation import SituationReader  # noqa: PLC0415
        from hami_dra.policy import explain as explanation  # noqa: PLC0415
        from hami_dra.policy.report import Report  # noqa: PLC0415
    except ModuleNotFoundError as error:
        module = str(error.name).partition(".")[0]
        raise FatalError(f"{module} is missing: pip install 'hami-dra[explain,outside]'") from error

    async with connect(kubeconfig) as session:
        reader = SituationReader(Api(session))
        try:
            if kind == "claim":
                situation = await reader.read_claim(namespace, name)
            else:
                situation = await reader.read_pod(namespace, name)
        except ValueError as error:
            raise UserError(str(error)) from error
        report = explanation.explain(situation)
        if report.state == "nothing" and situation.pod is not None:
            kept = await reader.explain_keys(dict(situation.pod), settings)
            if kept:
                report = Report(report.subject, "untouched", kept, notes=report.notes)
    fine = report.state in {"allocated", "possible", "nothing"}
    if json:
        return msgspec.json.format(msgspec.json.encode(report), indent=2).decode(), fine
    return render_report(report, everything=all_nodes), fine
