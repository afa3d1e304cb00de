"""The rows of ``tests/golden/cel.yaml`` with their abbreviations written out."""

from dataclasses import dataclass
from typing import Any, Final

import yaml

from hami_dra.contract.names import DRIVER_NAME
from hami_dra.policy import selectors
from tests.golden.rows import ROOT

_FILE: Final = ROOT / "cel.yaml"
_SEVERAL: Final = frozenset({"memory_between", "text_contains"})
"""Functions that take more than one argument."""
_SHORT: Final = {
    "ATTR": f'device.attributes["{DRIVER_NAME}"]',
    "CAP": f'device.capacity["{DRIVER_NAME}"]',
    "DRIVER": DRIVER_NAME,
}


@dataclass(frozen=True)
class Row:
    """One selector.

    Attributes:
        want: "true", "false", "error" or "refused", as the scheduler or API server has it.
        here: What `policy.cel` says, the same or "unknown".
        device: Name of the device that it is asked about.
        expression: The selector.
    """

    want: str
    here: str
    device: str
    expression: str


def read_table() -> tuple[dict[str, dict[str, Any]], list[Row]]:
    """Return the devices by name, and the rows."""
    table = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    return table["devices"], [_read_row(row) for row in table["rows"]]


def _read_row(row: dict[str, Any]) -> Row:
    want = str(row["want"]).lower()
    text = make_selector(row["made"]) if "made" in row else row["selector"]
    if "made" not in row:
        for short, long in _SHORT.items():
            text = text.replace(short, long)
    return Row(want, str(row.get("here", want)), row.get("device", "card"), text)


def make_selector(made: dict[str, Any]) -> str:
    """Call a function of `policy.selectors` by its name."""
    ((name, value),) = made.items()
    if name == "negate":
        return selectors.negate(make_selector(value))
    return str(getattr(selectors, name)(*(value if name in _SEVERAL else (value,))))
