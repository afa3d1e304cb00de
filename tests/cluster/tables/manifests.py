"""Whole manifests as cases (tests/golden/README.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from tests.cluster.tables.cases import Case, Header
from tests.cluster.tables.nodes import find_nodes
from tests.golden.rows import ROOT, load_vendors, read_documents

if TYPE_CHECKING:
    from pathlib import Path

FOLDER: Final = ROOT / "manifests"
_SETTINGS: Final = "settings.yaml"
_VENDORS: Final = "vendors"
"""Has the settings that we ship, deploy/vendors.yaml."""


def load_manifests(folder: Path = FOLDER) -> list[Case]:
    """Return every manifest of every dialect."""
    return [
        _load(path, dialect.name, _read_settings(dialect))
        for dialect in sorted(path for path in folder.iterdir() if path.is_dir())
        for path in sorted(dialect.glob("*.yaml"))
        if path.name != _SETTINGS
    ]


def _read_settings(dialect: Path) -> dict[str, Any]:
    if dialect.name == _VENDORS:
        return load_vendors()
    (found,) = read_documents(dialect / _SETTINGS)
    return dict(found or {})


def _load(path: Path, dialect: str, settings: dict[str, Any]) -> Case:
    head, *objects = read_documents(path)
    try:
        header = msgspec.convert(head, Header)
        nodes = find_nodes(header.nodes)
    except (msgspec.ValidationError, KeyError) as error:
        raise ValueError(f"{path}: first document: {error}") from error
    if bool(header.pods) == bool(header.denied) or not objects:
        raise ValueError(f"{path}: says neither or both of pods and denied, or has no object")
    return Case(
        name=f"{dialect}/{path.stem}",
        dialect=dialect,
        kind="manifest",
        nodes=nodes,
        settings=settings if header.settings is None else header.settings,
        objects=tuple(objects),
        pods=tuple(header.pods),
        denied=tuple(header.denied),
        warns=tuple(header.warns),
        in_turn=header.in_turn,
    )
