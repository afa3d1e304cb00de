"""What a node says in status.devices."""

from dataclasses import replace
from typing import Any

import pytest

from hami_dra.contract.errors import UserError
from hami_dra.contract.limits import digest_limits
from hami_dra.policy.binding import BoundService
from hami_dra.policy.claimstatus import Situation, describe_devices, is_current, own_entries
from hami_dra.policy.driverlimits import DriverHold
from hami_dra.policy.limits import Settled
from tests.unit.policy_binding.test_limits import bind, device

DRIVER = "hami-core-gpu.project-hami.io"
NOW, LATER = "2026-01-01T00:00:00Z", "2026-01-01T01:00:00Z"


def describe(*, stored: Any = (), stamp: str = NOW, **changes: Any) -> dict[str, Any]:
    situation = Situation(settled=Settled(bind(device(**changes))))
    (entry,) = describe_devices(situation, stored, stamp=stamp)
    return entry


def conditions(entry: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {item["type"]: (item["status"], item["reason"]) for item in entry["conditions"]}


def test_a_share_is_told_whole() -> None:
    assert describe() == {
        "driver": DRIVER,
        "pool": "node-1",
        "device": "gpu-0",
        "shareID": "share-of-gpu",
        "conditions": [
            {
                "type": "Ready",
                "status": "True",
                "reason": "Prepared",
                "message": "card GPU-0 is prepared",
                "lastTransitionTime": NOW,
            },
            {
                "type": "Enforced",
                "status": "True",
                "reason": "Libvgpu",
                "message": "libvgpu holds the containers to 3000 MiB of the card",
                "lastTransitionTime": NOW,
            },
        ],
        "data": {
            "uuid": "GPU-0",
            "backend": "libvgpu",
            "memoryMiB": 3000,
            "coresPercent": 30,
        },
    }


@pytest.mark.parametrize(
    ("changes", "enforced", "data"),
    [
        (
            {"exclusive": True, "share_id": None, "memory_mib": 0, "cores_percent": 0},
            ("False", "WholeCard"),
            {"backend": "none (whole card)", "memoryMiB": 3000, "coresPercent": 0},
        ),
        ({"admin": True}, ("False", "AdminAccess"), {"backend": "none (admin access)"}),
        (
            {"control_disabled": True},
            ("False", "ControlDisabled"),
            {"backend": "none (disabled by the claim)", "memoryMiB": 3000, "coresPercent": 30},
        ),
        (
            {"memory_mib": 0},
            ("True", "Libvgpu"),
            {"backend": "libvgpu", "memoryMiB": 3000, "coresPercent": 30},
        ),
    ],
)
def test_who_enforces(
    changes: dict[str, Any], enforced: tuple[str, str], data: dict[str, Any]
) -> None:
    entry = describe(**changes)

    assert conditions(entry)["Enforced"] == enforced
    assert entry["data"] == {"uuid": "GPU-0", **data}
    assert ("shareID" in entry) == (changes.get("share_id", "") is not None)


def test_a_condition_keeps_its_time_until_it_turns() -> None:
    first = describe()
    same = describe(stored=[first], stamp=LATER)
    turned = describe(stored=[first], stamp=LATER, control_disabled=True)

    assert same == first
    assert [item["lastTransitionTime"] for item in turned["conditions"]] == [NOW, LATER]
    assert is_current([first], [same])
    assert not is_current([first], [turned])
    assert not is_current([], [first])
    assert not is_current([first, turned], [first])


def test_a_lost_card_and_a_refused_wish_are_said() -> None:
    text = '{"gpu": {"memoryMiB": 99999}}'
    refused = UserError("must be from 1 to 3000; got 99999" + "x" * 2000, field="f")
    situation = Situation(Settled(bind(), refused), limits=text, lost={"GPU-0"})

    (entry,) = describe_devices(situation, (), stamp=NOW)

    assert conditions(entry) == {
        "Ready": ("False", "CardLost"),
        "Enforced": ("True", "Libvgpu"),
        "LimitsChanged": ("False", "Refused"),
    }
    assert entry["data"]["limitsSeen"] == digest_limits(text)
    assert entry["conditions"][2]["message"].startswith("f: must be from 1 to 3000")
    assert len(entry["conditions"][2]["message"]) == 1024


def test_a_wish_that_was_followed_is_said() -> None:
    situation = Situation(Settled(bind(device(memory_mib=1000))), limits="{}")

    (entry,) = describe_devices(situation, (), stamp=NOW)

    assert conditions(entry)["LimitsChanged"] == ("True", "Applied")
    assert entry["data"]["memoryMiB"] == 1000


def test_shares_of_one_card_have_an_entry_each_and_others_entries_are_not_ours() -> None:
    binding = bind(device("a"), device("b"))
    entries = describe_devices(Situation(Settled(binding)), (), stamp=NOW)
    strangers = [
        {**entries[0], "driver": "gpu.example.com"},
        {**entries[0], "pool": "another-node"},
    ]

    assert [entry["shareID"] for entry in entries] == ["share-of-a", "share-of-b"]
    assert own_entries([*strangers, *entries], binding) == entries
    moved = replace(binding.devices[0], share_id="share-of-b")
    assert describe_devices(Situation(Settled(bind(moved))), entries, stamp=LATER) == [entries[1]]


@pytest.mark.parametrize(
    ("holds", "backend", "status"),
    [(True, "libvgpu, driver", "True"), (False, "libvgpu", "False")],
)
def test_the_drivers_own_limit_is_told(*, holds: bool, backend: str, status: str) -> None:
    said = DriverHold("Because", "of that", holds=holds)
    situation = Situation(Settled(bind(device())), driver_holds={"GPU-0": said})
    (entry,) = describe_devices(situation, (), stamp=NOW)

    assert conditions(entry)["DriverLimit"] == (status, "Because")
    assert entry["data"]["backend"] == backend


@pytest.mark.parametrize("changes", [{"memory_mib": 0}, {"control_disabled": True}])
def test_nothing_is_said_of_the_driver_where_nothing_is_limited(changes: dict[str, Any]) -> None:
    said = {"GPU-0": DriverHold("Held", "held", holds=True)}
    situation = Situation(Settled(bind(device(**changes))), driver_holds=said)
    (entry,) = describe_devices(situation, (), stamp=NOW)

    assert "DriverLimit" not in conditions(entry)


def test_mps_is_told_beside_libvgpu() -> None:
    entry = describe(mps=BoundService(pipe_directory="/run/mps"))
    (enforced,) = [item for item in entry["conditions"] if item["type"] == "Enforced"]

    assert entry["data"]["backend"] == "libvgpu, mps"
    assert enforced["message"].endswith("MiB of the card, MPS to 30 % of its multiprocessors")
