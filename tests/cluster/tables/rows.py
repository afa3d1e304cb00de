"""Rows of the golden tables as cases."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from tests.cluster.tables.cases import Allocated, Case, Pods
from tests.cluster.tables.nodes import CardSpec, NodeSpec, find_nodes
from tests.golden.rows import build_containers, build_pod, load_cases, load_vendors

_CONFIG_FIELDS: Final = {"limit_mib": "memoryLimitMiB", "core_policy": "corePolicy"}
_MIB_OF_GIB: Final = 1024
_USUAL_MIB: Final = 16384
_CARDS_EACH: Final = 4
"""For rows about several containers."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A file of rows.

    Attributes:
        file: Below tests/golden.
        dialect: In whose words its rows are.
        prefix: Domain of resources that are written without one.
        nodes: Where rows run that do not say it.
        settings: Of rows that do not say them.
        settings_key: Where in the settings a row's own ``settings`` belong; "" for all of them.
        limits: Of rows that do not say them.
        together: Whether its rows are about a pod's containers together: ``requests`` says what
            each request of the claim gives, on a node with four cards of each of ``sizes``.
    """

    file: str
    dialect: str
    prefix: str = "nvidia.com"
    nodes: str = "a100x4"
    settings: dict[str, Any] = field(default_factory=dict)
    settings_key: str = ""
    limits: dict[str, int] = field(default_factory=dict)
    together: bool = False


TABLES: Final = (
    Table(file="hami/truth.yaml", dialect="hami"),
    Table(file="hami/refused.yaml", dialect="hami"),
    Table(file="hami/settings.yaml", dialect="hami", settings_key="nvidia"),
    Table(file="hami/percentage.yaml", dialect="hami"),
    Table(
        file="hami/annotations.yaml",
        dialect="hami",
        settings_key="defaultSchedulerPolicy",
        limits={"gpu": 1, "gpumem": 1000},
    ),
    Table(file="hami/pods.yaml", dialect="hami"),
    Table(
        file="volcano.yaml",
        dialect="volcano",
        prefix="volcano.sh",
        nodes="t4x4",
        settings={"dialects": ["hami", "volcano"]},
    ),
    Table(
        file="kai.yaml",
        dialect="kai",
        settings={"dialects": ["hami", "kai"]},
        together=True,
    ),
    Table(
        file="koordinator.yaml",
        dialect="koordinator",
        prefix="koordinator.sh",
        settings={"dialects": ["hami", "koordinator"]},
        together=True,
    ),
    Table(
        file="gpushare.yaml",
        dialect="gpushare",
        prefix="aliyun.com",
        settings={"dialects": ["hami", "gpushare"]},
        together=True,
    ),
    Table(
        file="vgpu_manager.yaml",
        dialect="vgpu-manager",
        settings={"dialects": ["hami", "vgpu-manager"]},
    ),
    Table(
        file="nvidia_plugin.yaml",
        dialect="nvidia",
        settings={"dialects": ["hami", "nvidia"], "nvidiaPlugin": {"replicas": 10}},
    ),
    Table(file="vendors.yaml", dialect="vendors", nodes="vendors", settings=load_vendors()),
)


def load_rows() -> list[Case]:
    """Return every row of every table that an API server can see."""
    return [
        (_read_together if table.together else _read)(table, row)
        for table in TABLES
        for row in load_cases(table.file)
        if not row.get("offline")
    ]


def _read(table: Table, row: dict[str, Any]) -> Case:
    name = f"{table.file.removesuffix('.yaml')}: {row['case']}"
    if table.limits:
        row = {"limits": table.limits, **row}
    refused = row.get("refused", row.get("says"))
    pods: tuple[Pods, ...] = ()
    if refused is None:
        try:
            pods = (_expect(row),)
        except msgspec.ValidationError as error:
            raise ValueError(f"{name}: {error}") from error
    return Case(
        name=name,
        dialect=table.dialect,
        kind="row",
        nodes=_find_nodes(table, row),
        settings=_find_settings(table, row),
        objects=(*row.get("objects", ()), _complete(build_pod(row, table.prefix))),
        pods=pods,
        denied=tuple(refused or ()),
        warns=(*row.get("warns", ()), *row.get("unfit", ())),
    )


def _read_together(table: Table, row: dict[str, Any]) -> Case:
    refused = tuple(row.get("refused", ()))
    sizes = row.get("sizes", [_USUAL_MIB])
    cards: list[str | CardSpec] = [CardSpec(mib=mib, count=_CARDS_EACH) for mib in sizes]
    return Case(
        name=f"{table.file.removesuffix('.yaml')}: {row['case']}",
        dialect=table.dialect,
        kind="row",
        nodes=(NodeSpec(name="a", cards=cards),),
        settings={**table.settings, **row.get("settings", {})},
        objects=(_complete(build_containers(row, table.prefix)),),
        pods=() if refused else (_expect_together(row, sizes),),
        denied=refused,
        warns=tuple(row.get("warns", ())),
    )


def _expect_together(row: dict[str, Any], sizes: list[int]) -> Pods:
    if not sizes:
        return Pods(pending=[])
    wanted = {}
    for name, said in row.get("requests", {}).items():
        memory = said["memory"]
        # Of alternatives the first, which is for the smallest cards.
        first = memory[0] if isinstance(memory, list) else memory
        wanted[name] = {
            "cards": said["cards"],
            "memory": f"{sizes[0]}Mi" if first == "all" else first,
            "cores": said.get("cores", 0),
            "config": row.get("config", {}),
        }
    return Pods(allocated=msgspec.convert(wanted, dict[str, Allocated]))


def _expect(row: dict[str, Any]) -> Pods:
    asks = {"request", "asks", "devices"} & row.keys()
    if "untaken" in row:
        return Pods(untaken=True)
    if "pending" in row:
        return Pods(pending=row["pending"])
    if "allocated" not in row:
        if asks:
            raise msgspec.ValidationError("yields a claim, and neither allocated nor pending")
        return Pods()
    allocated = row["allocated"]
    if "devices" not in row:
        config = {written: row[key] for key, written in _CONFIG_FIELDS.items() if key in row}
        allocated = {"main": {"config": {**config, **row.get("config", {})}, **allocated}}
    return Pods(allocated=msgspec.convert(allocated, dict[str, Allocated]))


def _find_settings(table: Table, row: dict[str, Any]) -> dict[str, Any]:
    own = row.get("settings", row.get(table.settings_key))
    if own is None:
        return table.settings
    return {**table.settings, table.settings_key: own} if table.settings_key else own


def _find_nodes(table: Table, row: dict[str, Any]) -> tuple[NodeSpec, ...]:
    """Return the row's ``nodes``; else nodes with its ``cards`` in MiB, or one for each size."""
    if "nodes" in row:
        found = row["nodes"]
        return find_nodes(found if isinstance(found, str) else _convert(found))
    if "sizes" in row:
        count = row.get("cards", 1)
        sizes = [[_mib(size)] * count for size in row["sizes"]]
    elif "cards" in row:
        sizes = row["cards"]
    else:
        return find_nodes(table.nodes)
    return tuple(
        NodeSpec(name=f"n{number}", cards=[CardSpec(mib=mib) for mib in node])
        for number, node in enumerate(sizes or [[]])
    )


def _convert(found: list[Any]) -> list[NodeSpec]:
    return msgspec.convert(found, list[NodeSpec])


def _mib(size: int | str) -> int:
    return size * _MIB_OF_GIB if isinstance(size, int) else int(size.removesuffix("Mi"))


def _complete(pod: dict[str, Any]) -> dict[str, Any]:
    """Return a pod with what a row leaves out because admission does not look at it."""
    spec = dict(pod["spec"])
    for kind in ("initContainers", "containers"):
        if kind in spec:
            spec[kind] = [{"image": "app:1", **container} for container in spec[kind]]
    metadata = {key: value for key, value in pod["metadata"].items() if key != "namespace"}
    return {"apiVersion": "v1", "kind": "Pod", **pod, "metadata": metadata, "spec": spec}
