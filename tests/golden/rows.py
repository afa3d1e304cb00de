"""Reads the golden tables, for tests of the policy alone and for those on a real scheduler."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import yaml

_Loader: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # many times as fast
ROOT: Final = Path(__file__).parent
_WORDS: Final = {"MANY": ",".join(map(str, range(65))), "LONG": "x" * 10240}


def load_cases(file: str) -> list[Any]:
    """Return the rows of a table."""
    (rows,) = read_documents(ROOT / file)
    assert isinstance(rows, list)
    return rows


def read_documents(path: Path) -> list[Any]:
    """Return the YAML documents in a file."""
    return list(yaml.load_all(path.read_text(encoding="utf-8"), Loader=_Loader))


def load_vendors() -> dict[str, Any]:
    """Return settings with every row of deploy/vendors.yaml."""
    path = ROOT.parents[1] / "deploy" / "vendors.yaml"
    return dict(yaml.safe_load(path.read_text(encoding="utf-8")))


def build_containers(row: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Return the pod of a row that is about a pod's containers together.

    Args:
        row: Has ``containers`` and ``init``, each with ``limits`` and ``requests`` by resource, or
            these and ``env`` for one container ``main``; ``annotations``, ``labels``, ``spec``.
        prefix: Domain of resources that are written without one.
    """
    main: dict[str, Any] = {key: row[key] for key in ("limits", "env") if key in row}
    containers = row.get("containers", [{"name": "main", **main}])
    spec: dict[str, Any] = {
        "containers": [_build_container(each, prefix) for each in containers],
        **row.get("spec", {}),
    }
    if "init" in row:
        spec["initContainers"] = [_build_container(each, prefix) for each in row["init"]]
    metadata: dict[str, Any] = {key: row[key] for key in ("annotations", "labels") if key in row}
    return {"metadata": {"name": "p", **metadata}, "spec": spec}


def _build_container(said: dict[str, Any], prefix: str) -> dict[str, Any]:
    built = {key: value for key, value in said.items() if key not in {"limits", "requests"}}
    for kind in said.keys() & {"limits", "requests"}:
        full = {
            name if "/" in name else f"{prefix}/{name}": said[kind][name] for name in said[kind]
        }
        built.setdefault("resources", {})[kind] = full
    return built


def name_case(row: dict[str, Any]) -> str:
    """Name a row in the report."""
    return str(row["case"])


def build_pod(row: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Return the pod that a row describes: one container ``main``, or the row's whole ``pod``.

    Args:
        row: Has ``limits`` and ``requests`` by resource, ``env``, ``annotations``, ``labels``, and
            more fields of the ``container`` and of the ``pod`` (its spec).
        prefix: Domain of resources that are written without one.
    """
    if "containers" in row.get("pod", {}).get("spec", {}):
        whole: dict[str, Any] = row["pod"]
        return whole
    resources = {
        key: {
            name if "/" in name else f"{prefix}/{name}": value for name, value in row[key].items()
        }
        for key in ("limits", "requests")
        if key in row
    }
    container = {"name": "main", "resources": resources, **row.get("container", {})}
    if env := row.get("env"):
        container["env"] = [{"name": name, "value": value} for name, value in env.items()]
    metadata: dict[str, Any] = {"name": "p"}
    if "annotations" in row:
        written = row["annotations"]
        metadata["annotations"] = {key: _WORDS.get(text, text) for key, text in written.items()}
    if "labels" in row:
        metadata["labels"] = row["labels"]
    return {"metadata": metadata, "spec": {"containers": [container], **row.get("pod", {})}}
