"""An explanation as text for a terminal."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

from hami_dra.policy.asks import Reason
from hami_dra.policy.report import CardReport, NodeReport, Report

_MOST_NODES: Final = 8
_MOST_NAMES: Final = 4


def render_report(report: Report, *, everything: bool = False) -> str:
    """Return the lines to print.

    Args:
        report: What to tell.
        everything: Every node by itself, instead of the nearest ones.
    """
    lines = [f"{report.subject}: {report.summary}"]
    for title, texts in (("Asks", report.asks), ("Got", report.allocated)):
        if texts:
            lines += ["", f"{title}:", *(f"  {text}" for text in texts)]
    if report.nodes:
        lines += ["", "Nodes:", *_render_nodes(report, everything=everything)]
    if report.notes:
        lines += ["", "Notes:", *(f"  {note}" for note in report.notes)]
    return "\n".join(lines)


def _render_nodes(report: Report, *, everything: bool) -> Iterator[str]:
    nodes = report.nodes
    with_cards = sorted(
        (node for node in nodes if node.cards),
        key=lambda node: (not node.fits, -sum(card.fits for card in node.cards)),
    )
    shown = with_cards if everything else with_cards[:_MOST_NODES]
    for node in shown:
        yield from _render_node(node, report.selectors)
    if len(shown) < len(with_cards):
        yield f"  and {len(with_cards) - len(shown)} more nodes with cards, no nearer (--all)"
    others: dict[str, list[str]] = defaultdict(list)
    for node in nodes:
        if not node.cards:
            others["; ".join(reason.text for reason in node.reasons)].append(node.node)
    for text, names in others.items():
        most = len(names) if everything else _MOST_NAMES
        rest = f" and {len(names) - most} more" if len(names) > most else ""
        yield f"  {', '.join(names[:most])}{rest}: {text}"


def _render_node(node: NodeReport, selectors: Sequence[str]) -> Iterator[str]:
    if node.fits:
        yield f"  {node.node}: fits"
    elif node.fits is None:
        yield f"  {node.node}: too many ways to try them all"
    else:
        yield f"  {node.node}: {'; '.join(reason.text for reason in node.reasons)}"
    requests = {card.request for card in node.cards}
    rows = [_render_card(card, selectors, named=len(requests) > 1) for card in node.cards]
    widths = [max(len(row[column]) for row, _ in rows) for column in range(2)]
    for row, texts in rows:
        first, *rest = texts
        start = f"    {row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  "
        yield f"{start}{first}"
        yield from (f"{'':<{len(start)}}{text}" for text in rest)


def _render_card(
    card: CardReport, selectors: Sequence[str], *, named: bool
) -> tuple[tuple[str, str], list[str]]:
    label = f"{card.request}: {card.device}" if named else card.device
    texts = [_render_reason(reason, selectors) for reason in card.reasons]
    return (label, card.model), texts or ["fits"]


def _render_reason(reason: Reason, selectors: Sequence[str]) -> str:
    if not reason.selector:
        return reason.text
    if reason.selector in selectors:
        return f"({selectors.index(reason.selector) + 1}) {reason.text}"
    return f"the class's selector {reason.text}"
