"""Why claims cannot be allocated, for everything that a claim, a device or a node may say."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from hami_dra.cli.explaintext import render_report
from hami_dra.policy.explain import PodClaim, Situation, explain
from hami_dra.policy.report import Report

GOLDEN: Final = yaml.safe_load(
    (Path(__file__).parents[2] / "golden" / "explain.yaml").read_text(encoding="utf-8")
)
Object = dict[str, Any]


def merge(base: Any, change: Any) -> Any:
    """Return the base with the change laid over it; lists are replaced."""
    if isinstance(base, Mapping) and isinstance(change, Mapping):
        return {k: merge(base.get(k), change.get(k, base.get(k))) for k in {**base, **change}}
    return copy.deepcopy(change if change is not None else base)


def make_slices(nodes: Mapping[str, Any]) -> list[Object]:
    """Return one slice per node and driver, in the form of the API server."""
    return [
        {
            "metadata": {"name": f"{node}-{driver}"},
            "spec": {
                "driver": driver,
                "pool": {"name": node, "generation": 1, "resourceSliceCount": 1},
                "nodeName": node,
                **(content if isinstance(content, dict) else {}),
                "devices": make_devices(
                    content["devices"] if isinstance(content, dict) else content
                ),
            },
        }
        for node, drivers in nodes.items()
        for driver, content in drivers.items()
    ]


def make_devices(written: Sequence[Any]) -> list[Object]:
    return [
        {
            "name": f"card{index}",
            **merge(GOLDEN["devices"][each.get("like", "card")], each.get("but", {})),
        }
        for index, each in enumerate(written)
    ]


def make_situation(case: Object) -> Situation:
    nodes = case.get("nodes", GOLDEN["nodes"])
    taken = [
        {
            "metadata": {"namespace": "default", "name": name},
            "status": {"allocation": {"devices": {"results": results}}},
        }
        for name, results in case.get("taken", {}).items()
    ]
    claims = tuple(
        PodClaim(name, f"ResourceClaim {name}", {"devices": spec} if spec else None)
        if "allocation" not in (spec or {})
        else PodClaim(name, f"ResourceClaim {name}", {}, spec["allocation"])
        for name, spec in case["claims"].items()
    )
    labels = case.get("labels", {})
    return Situation(
        subject="Pod default/pod",
        pod={"metadata": {"name": "pod"}, **case.get("pod", {})},
        claims=claims,
        nodes=tuple({"metadata": {"name": node, "labels": labels.get(node, {})}} for node in nodes),
        slices=(*make_slices(nodes), *case.get("slices", ())),
        all_claims=tuple(taken),
        classes=GOLDEN["classes"],
        taint_rules=tuple(case.get("taint_rules", ())),
    )


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: str(case["case"]))
def test_golden(case: Object) -> None:
    report = explain(make_situation(case))
    said = render_report(report, everything=True)
    assert report.state == case["state"]
    assert [part for part in case["said"] if part not in said] == []
    assert [part for part in case.get("unsaid", ()) if part in said] == []


def explain_many(count: int) -> Report:
    names = [f"node{number:03}" for number in range(count)]
    case = {
        "claims": {"gpu": {"requests": [{"name": "a", "exactly": {"deviceClassName": "gpu"}}]}},
        "nodes": {name: {"gpu.example.com": [{"like": "t4"}]} for name in names[: count // 2]}
        | {name: {} for name in names[count // 2 :]},
        "taken": {
            f"c{number}": [
                {"driver": "gpu.example.com", "pool": name, "device": "card0", "request": "a"}
            ]
            for number, name in enumerate(names[: count // 2])
        },
    }
    return explain(make_situation(case))


def test_a_large_cluster_is_told_in_short() -> None:
    report = explain_many(1000)
    lines = render_report(report).splitlines()
    assert len(lines) < 40
    assert "  and 492 more nodes with cards, no nearer (--all)" in lines
    assert any(line.endswith("and 496 more: has no such card") for line in lines)
    assert len(render_report(report, everything=True).splitlines()) > 1000


def test_a_search_that_takes_too_long_is_given_up() -> None:
    requests = [
        {"name": f"r{number}", "exactly": {"deviceClassName": "gpu", "count": 4}}
        for number in range(4)
    ]
    constraint = {"matchAttribute": "gpu.example.com/uuid"}
    nodes = {
        "n": {
            "gpu.example.com": [
                {"but": {"attributes": {"uuid": {"string": str(i)}}}} for i in range(30)
            ]
        }
    }
    case = {"claims": {"gpu": {"requests": requests, "constraints": [constraint]}}, "nodes": nodes}
    report = explain(make_situation(case))
    assert report.state in {"unclear", "impossible"}
    cheap = [{"name": f"r{n}", "exactly": {"deviceClassName": "gpu", "count": 8}} for n in range(4)]
    distinct = {"distinctAttribute": "gpu.example.com/uuid"}
    case = {"claims": {"gpu": {"requests": cheap, "constraints": [distinct]}}, "nodes": nodes}
    report = explain(make_situation(case))
    assert report.state == "unclear"
    assert "too many ways" in report.summary
