"""A wish for other limits: followed within what the claim consumes, whole or not at all."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hami_dra.contract.errors import UserError
from hami_dra.contract.limits import LimitChange, decode_limits, digest_limits, encode_limits
from hami_dra.policy.binding import Binding, BoundDevice
from hami_dra.policy.limits import change_limits, read_wish, settle_limits


def device(request: str = "gpu", **changes: Any) -> BoundDevice:
    facts: dict[str, Any] = {
        "request": request,
        "pool": "node-1",
        "device": "gpu-0",
        "uuid": "GPU-0",
        "minor": 0,
        "share_id": f"share-of-{request}",
        "memory_mib": 3000,
        "cores_percent": 30,
        "consumed_memory_mib": 3000,
        "consumed_cores": 30,
        "consumed_slots": 1,
    }
    return BoundDevice(**facts | changes)


def bind(*devices: BoundDevice) -> Binding:
    return Binding(claim_uid="uid", namespace="team", name="job", devices=devices or (device(),))


def limits(binding: Binding) -> list[tuple[int, int]]:
    return [(found.memory_mib, found.cores_percent) for found in binding.devices]


WHOLE = {"memory_mib": 0, "consumed_memory_mib": 40960, "cores_percent": 0, "consumed_cores": 100}


@pytest.mark.parametrize(
    ("granted", "wish", "result"),
    [
        ({}, {"memoryMiB": 1000}, (1000, 30)),
        ({}, {"coresPercent": 10}, (3000, 10)),
        ({}, {"memoryMiB": 1, "coresPercent": 1}, (1, 1)),
        ({}, {"memoryMiB": 3000, "coresPercent": 30}, (3000, 30)),
        ({}, {}, (3000, 30)),
        # The claim's configuration enforces less than it consumes: that may be raised.
        ({"memory_mib": 500}, {"memoryMiB": 2000}, (2000, 30)),
        # No compute reserved: any limit is a lower one, and 0 lifts it again.
        ({"consumed_cores": 0, "cores_percent": 0}, {"coresPercent": 40}, (3000, 40)),
        ({"consumed_cores": 0, "cores_percent": 0}, {"coresPercent": 0}, (3000, 0)),
        ({"consumed_cores": 0, "cores_percent": 0}, {"coresPercent": 100}, (3000, 0)),
        # A share of everything is not limited; less of it is.
        (WHOLE, {"memoryMiB": 40959, "coresPercent": 99}, (40959, 99)),
        (WHOLE, {"memoryMiB": 40960, "coresPercent": 100}, (0, 0)),
    ],
)
def test_limits_that_may_be_had(
    granted: dict[str, Any], wish: dict[str, int], result: tuple[int, int]
) -> None:
    found = change_limits(bind(device(**granted)), decode_limits(json.dumps({"gpu": wish})))

    assert limits(found) == [result]


PATH = "metadata.annotations[gpu.project-hami.io/limits]"


@pytest.mark.parametrize(
    ("granted", "text", "words"),
    [
        ({}, '{"gpu": {"memoryMiB": 3001}}', rf"{PATH}.gpu.memoryMiB: must be from 1 to 3000"),
        ({}, '{"gpu": {"memoryMiB": 0}}', "must be from 1 to 3000.*got 0"),
        ({}, '{"gpu": {"memoryMiB": -1}}', "got -1"),
        ({}, '{"gpu": {"coresPercent": 31}}', rf"{PATH}.gpu.coresPercent: must be from 1 to 30"),
        ({}, '{"gpu": {"coresPercent": 0}}', "must be from 1 to 30.*consumes 30 %"),
        (
            {"consumed_cores": 0, "cores_percent": 0},
            '{"gpu": {"coresPercent": 101}}',
            "must be from 0 to 100",
        ),
        ({}, '{"cpu": {"memoryMiB": 1}}', rf"{PATH}.cpu: the claim has no such request.*has gpu"),
        ({"admin": True}, '{"gpu": {"memoryMiB": 1}}', "nothing limits it"),
        ({"exclusive": True, "share_id": None}, '{"gpu": {"memoryMiB": 1}}', "nothing limits it"),
        ({}, '{"gpu": {"memory": 1}}', "unknown field `memory`"),
        ({}, '{"gpu": {"memoryMiB": "1000"}}', "Expected `int | null`"),
        ({}, '{"gpu": {"memoryMiB": 1e30}}', "cannot be read"),
        ({}, '{"gpu": 1000}', "Expected `object`"),
        ({}, "[]", "Expected `object`"),
        ({}, "", "cannot be read"),
        ({}, "[" * 100_000, "cannot be read"),
        ({}, '"\ud800"', "cannot be read"),
    ],
)
def test_wishes_that_are_refused_name_their_field(
    granted: dict[str, Any], text: str, words: str
) -> None:
    binding = bind(device(**granted))
    settled = settle_limits(binding, text, None)

    assert settled.binding == binding
    with pytest.raises(UserError, match=words.replace("[", r"\[", 1).replace("]", r"\]", 1)):
        raise settled.refused or AssertionError("it was accepted")


def test_one_bad_request_refuses_the_whole_wish_and_what_held_goes_on_holding() -> None:
    granted = bind(device("a"), device("b"))
    first = settle_limits(granted, '{"a": {"memoryMiB": 1000}}', None)
    second = settle_limits(
        granted, '{"a": {"memoryMiB": 2000}, "b": {"memoryMiB": 9999}}', first.binding
    )

    assert limits(first.binding) == limits(second.binding) == [(1000, 30), (3000, 30)]
    assert second.refused is not None
    assert settle_limits(granted, None, first.binding).binding == granted


def test_what_held_of_another_share_is_not_taken_over() -> None:
    granted = bind(device())
    other = bind(device(share_id="another", memory_mib=1))

    assert settle_limits(granted, "?", other).binding == granted


@given(
    wish=st.dictionaries(
        st.sampled_from(["gpu", "other"]),
        st.fixed_dictionaries(
            {},
            optional={
                "memoryMiB": st.integers(-10, 50000),
                "coresPercent": st.integers(-10, 200),
            },
        ),
    ),
    consumed=st.integers(1, 40960),
    cores=st.integers(0, 100),
    enforced=st.integers(1, 40960),
)
def test_no_wish_gives_more_than_is_consumed(
    wish: dict[str, dict[str, int]], consumed: int, cores: int, enforced: int
) -> None:
    granted = bind(
        device(
            memory_mib=min(enforced, consumed),
            consumed_memory_mib=consumed,
            consumed_cores=cores,
            cores_percent=cores % 100,
        )
    )
    (found,) = settle_limits(granted, json.dumps(wish), None).binding.devices

    assert 1 <= found.memory_mib <= consumed
    if 0 < cores < 100:
        assert 1 <= found.cores_percent <= cores
    assert found.consumed_memory_mib == consumed


@given(st.text())
def test_any_text_is_a_wish_or_refused(text: str) -> None:
    settled = settle_limits(bind(), text, None)

    assert settled.refused is not None or decode_limits(text) is not None
    assert len(digest_limits(text)) == 16


def test_the_text_is_the_same_for_the_same_wish() -> None:
    changes = {"b": LimitChange(memory_mib=1), "a": LimitChange(cores_percent=0)}
    text = encode_limits(changes)

    assert text == '{"a":{"coresPercent":0},"b":{"memoryMiB":1}}'
    assert decode_limits(text) == changes
    assert read_wish({"metadata": {"annotations": {"gpu.project-hami.io/limits": text}}}) == text
    assert read_wish({"metadata": {}}) is None
