"""Golden tables of the dialects whose words are on the pod, or add up over its containers."""

from collections.abc import Iterator
from typing import Any

import jsonpatch
import pytest

from hami_dra.contract.errors import UserError
from hami_dra.contract.names import DRIVER_NAME
from hami_dra.contract.settings import AdmissionSettings, decode_settings
from hami_dra.policy.fit import Card, NodeCards
from hami_dra.policy.podplan import PodPlan, plan_pod
from tests.golden.rows import build_containers, load_cases

_PREFIXES = {"kai": "nvidia.com", "koordinator": "koordinator.sh", "gpushare": "aliyun.com"}
_ROWS = [(dialect, row) for dialect in _PREFIXES for row in load_cases(f"{dialect}.yaml")]


@pytest.mark.parametrize(
    ("dialect", "row"), _ROWS, ids=[f"{dialect}: {row['case']}" for dialect, row in _ROWS]
)
def test_rows(dialect: str, row: dict[str, Any]) -> None:
    pod = build_containers(row, _PREFIXES[dialect])
    settings = decode_settings({"dialects": ["hami", dialect], **row.get("settings", {})})
    nodes = [tuple(Card(size, 100, 10) for size in row.get("sizes", [16384]))]
    if "hami" not in row:
        assert plan_pod(pod, nodes=nodes) is None, "off by default"
    if "refused" in row:
        with pytest.raises(UserError) as caught:
            plan_pod(pod, settings, nodes=nodes)
        assert [part for part in row["refused"] if part not in str(caught.value)] == []
        return
    plan = plan_pod(pod, settings, nodes=nodes)
    assert plan is not None
    warns = row.get("warns", [])
    assert list(plan.warnings) == [_Containing(part) for part in warns]
    assert jsonpatch.apply_patch(pod, plan.patch) == plan.pod
    assert not any(f"'{key}'" in str(plan.pod["spec"]) for key in plan.request.keys)
    _check_once_is_enough(plan, settings, nodes)
    assert dict(_list_requests(plan)) == row.get("requests", {})
    devices = _devices(plan)
    assert [_shorten(entry) for entry in devices.get("constraints", [])] == row.get(
        "constraints", []
    )
    config = [entry["opaque"]["parameters"] for entry in devices.get("config", [])]
    kind = {"apiVersion": "gpu.project-hami.io/v1alpha1", "kind": "ShareConfig"}
    assert config == ([{**kind, **row["config"]}] if "config" in row else [])
    assert plan.request.uses == row.get("uses", {name: name for name in row.get("requests", {})})


class _Containing:
    """Equal to every text that contains this one."""

    def __init__(self, part: str) -> None:
        self._part = part

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and self._part in other

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"…{self._part}…"


def _check_once_is_enough(
    plan: PodPlan, settings: AdmissionSettings, nodes: list[NodeCards]
) -> None:
    again = plan_pod(plan.pod, settings, nodes=nodes)
    if again is not None:
        assert again.patch == []
        assert again.template == plan.template


def _devices(plan: PodPlan) -> dict[str, Any]:
    devices: dict[str, Any] = plan.template["spec"]["spec"]["devices"] if plan.template else {}
    return devices


def _list_requests(plan: PodPlan) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each request by name, memory of alternatives as a list."""
    for request in _devices(plan).get("requests", []):
        asks = [request["exactly"]] if "exactly" in request else request["firstAvailable"]
        memory = [ask["capacity"]["requests"].get("memory", "all") for ask in asks]
        first = {**asks[0]["capacity"]["requests"]}
        assert first.pop("slots") == "1"
        cores = int(first["cores"])
        said: dict[str, Any] = {
            "cards": asks[0]["count"],
            "memory": memory[0] if len(memory) == 1 else memory,
        }
        if cores:
            said["cores"] = cores
        yield request["name"], said


def _shorten(constraint: dict[str, Any]) -> str:
    (kind,) = constraint.keys() - {"requests"}
    attribute = constraint[kind].removeprefix(f"{DRIVER_NAME}/")
    attribute = attribute.removeprefix("resource.kubernetes.io/")
    word = {"matchAttribute": "same", "distinctAttribute": "distinct"}[kind]
    return f"{word} {attribute}: {' '.join(constraint['requests'])}"
