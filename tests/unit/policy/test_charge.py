"""What counts against a quota."""

from typing import Any

import pytest

from hami_dra.contract.names import ANNOTATION_POD_CLAIM, DEVICE_CLASS, DRIVER_NAME
from hami_dra.policy.charge import Takes, read_claim, read_spec, sum_takes
from hami_dra.policy.fit import Card
from hami_dra.policy.podplan import plan_pod
from tests.unit.policy.golden import load_cases, name_case

_CASES = load_cases("quota.yaml")


def _container(name: str, limits: dict[str, Any]) -> dict[str, Any]:
    resources = {f"nvidia.com/{key}": str(value) for key, value in limits.items()}
    return {"name": name, "resources": {"limits": resources}}


def _ask(row: dict[str, Any]) -> dict[str, Any]:
    requests = {key: str(row[key]) for key in ("memory", "cores") if key in row}
    mode = {"allocationMode": row["mode"]} if "mode" in row else {"count": row.get("count", 1)}
    admin = {"adminAccess": True} if row.get("admin") else {}
    name = row.get("class", DEVICE_CLASS)
    return {"deviceClassName": name, "capacity": {"requests": requests}, **mode, **admin}


def _request(name: str, row: Any) -> dict[str, Any]:
    if isinstance(row, list):
        subrequests = [{"name": f"s{i}", **_ask(each)} for i, each in enumerate(row)]
        return {"name": name, "firstAvailable": subrequests}
    return {"name": name, "exactly": _ask(row)}


def _result(row: dict[str, Any]) -> dict[str, Any]:
    consumed = {key: row[key] for key in ("memory", "cores") if key in row}
    driver = row.get("driver", DRIVER_NAME)
    result: dict[str, Any] = {
        "driver": driver,
        "adminAccess": row.get("admin"),
        "request": row.get("request", "r"),
    }
    return {**result, "consumedCapacity": consumed} if consumed else result


def _read(row: dict[str, Any], sizes: list[int]) -> Takes:
    if "limits" in row:
        spec = {"containers": [_container("main", row["limits"])]}
        if "init" in row:
            spec["initContainers"] = [_container("first", row["init"])]
        plan = plan_pod({"spec": spec}, nodes=[tuple(Card(size, 100, 10) for size in sizes)])
        assert plan is not None
        assert plan.template is not None
        return read_spec(plan.template["spec"]["spec"])
    if "asks" in row:
        requests = [_request(f"r{i}", each) for i, each in enumerate(row["asks"])]
        return read_spec({"devices": {"requests": requests}})
    results = [_result(each) for each in row["results"]]
    # Whatever it asked for, but for parts of cards.
    asked = [_request(f"r{i}", each) for i, each in enumerate(row.get("asked", ()))]
    claim = {
        "metadata": {"uid": "u"},
        "spec": {"devices": {"requests": asked or [_request("r", {"count": 7})]}},
        "status": {"allocation": {"devices": {"results": results}}},
    }
    use = read_claim(claim)
    return use.takes if use else ()


@pytest.mark.parametrize("row", _CASES, ids=name_case)
def test_table(row: dict[str, Any]) -> None:
    sizes = [size * 1024 for size in row.get("sizes", [16, 40])]
    charge = sum_takes(_read(row, sizes), max(sizes, default=None))
    assert [charge.cards, charge.memory_mib, charge.cores_percent] == row["counts"]
    assert charge.unsized == row.get("unsized", False)


def test_what_cannot_be_read_counts_as_much_as_a_claim_can_hold() -> None:
    charge = sum_takes(read_spec({"devices": 5}), 1024)
    assert (charge.cards, charge.memory_mib, charge.cores_percent) == (32, 32 * 1024, 3200)


def test_a_claim_names_the_pod_that_it_was_made_for() -> None:
    owner = {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "pod-1", "controller": True}
    metadata = {
        "uid": "claim-1",
        "annotations": {ANNOTATION_POD_CLAIM: "gpu"},
        "ownerReferences": [{**owner, "controller": False, "uid": "x"}, owner],
    }
    spec = {"devices": {"requests": [_request("r", {})]}}
    use = read_claim({"metadata": metadata, "spec": spec})
    assert use is not None
    assert (use.uid, use.made_for) == ("claim-1", "pod-1/gpu")
    group = [{**owner, "kind": "PodGroup"}]
    use = read_claim({"metadata": {**metadata, "ownerReferences": group}, "spec": spec})
    assert use is not None
    assert use.made_for == ""
    assert read_claim({"metadata": metadata, "spec": {}}) is None
