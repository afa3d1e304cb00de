"""Claims as text for a terminal."""

from collections.abc import Sequence
from typing import Final

from hami_dra.policy.claimview import ClaimView, ShareView

_HEAD: Final = (
    "NAMESPACE",
    "CLAIM",
    "REQUEST",
    "NODE",
    "CARD",
    "TAKES",
    "LIMIT",
    "COMPUTE",
    "ENFORCED BY",
    "READY",
    "PODS",
)


def render_list(views: Sequence[ClaimView]) -> str:
    """Return a table with a line for each share."""
    rows = [
        (
            view.namespace,
            view.name,
            share.request,
            share.node,
            share.uuid or share.device,
            _mib(share.consumed_mib, absent="whole"),
            _mib(share.memory_mib, absent="-"),
            _percent(share),
            share.backend or "-",
            share.ready or "-",
            ",".join(view.pods) or "-",
        )
        for view in views
        for share in view.shares
    ]
    if not rows:
        return "no claim has a card of ours"
    widths = [max(len(row[column]) for row in (_HEAD, *rows)) for column in range(len(_HEAD))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (_HEAD, *rows)
    )


def render_claim(view: ClaimView) -> str:
    """Return everything that is known of a claim."""
    lines = [
        f"Claim {view.namespace}/{view.name} ({view.uid})",
        f"Pods: {', '.join(view.pods) or 'none'}",
    ]
    if view.wish is not None:
        lines.append(f"Asked for: {view.wish}")
    for share in view.shares:
        takes = _mib(share.consumed_mib, absent="the whole card")
        if share.consumed_cores is not None:
            takes += f", {share.consumed_cores} % compute"
        limit = f"{_mib(share.memory_mib, absent='not known yet')}, compute {_percent(share)}"
        lines += [
            "",
            f"Request {share.request} on node {share.node}: {share.uuid or share.device}",
            f"  takes     {takes}",
            f"  limit     {limit}",
            f"  enforced  {share.backend or 'not known yet'}",
            f"  ready     {share.ready or 'not known yet'}",
            *(f"  {message}" for message in share.messages),
        ]
    return "\n".join(lines)


def _mib(value: int | None, *, absent: str) -> str:
    return absent if value is None else f"{value} MiB"


def _percent(share: ShareView) -> str:
    if share.cores_percent is None:
        return "-"
    return f"{share.cores_percent} %" if share.cores_percent else "not limited"
