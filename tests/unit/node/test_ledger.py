"""Laws of the ledger, and what it does with a file that is no ledger."""

import asyncio
import sqlite3
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hami_dra.contract.errors import RetryError
from hami_dra.node.ledger import (
    CardTakenError,
    Change,
    ClaimRecord,
    Ledger,
    describe_end,
    describe_intent,
    describe_removal,
)
from hami_dra.policy.binding import Binding, BoundDevice, BoundPart
from hami_dra.policy.devices import CardCapacity
from hami_dra.testing.crashpoints import Point, watch_points

CAPACITY = CardCapacity(memory_mib=1000, cores=100, slots=4)
PART = BoundPart(card="GPU-0", profile=19, start=0, size=1, dynamic=True)


def make_record(
    uid: str,
    *,
    memory: int,
    cores: int,
    slots: int = 1,
    admin: bool = False,
    exclusive: bool = False,
    part: BoundPart | None = None,
) -> ClaimRecord:
    device = BoundDevice(
        request="gpu",
        pool="node-1",
        device="gpu-0",
        uuid="GPU-0",
        minor=0,
        share_id=None if exclusive else f"share-{uid}",
        memory_mib=memory,
        cores_percent=cores,
        consumed_memory_mib=0 if admin else memory,
        consumed_cores=0 if admin else cores,
        consumed_slots=0 if admin else slots,
        exclusive=exclusive,
        admin=admin,
        mig=part,
    )
    binding = Binding(claim_uid=uid, namespace="team", name=uid, devices=(device,))
    return ClaimRecord(binding=binding, library="/lib", boot_id="boot")


@contextmanager
def counted_commits(file: Path) -> Iterator[list[str]]:
    """Count what is committed by connections that are opened in the block."""
    found: list[str] = []

    def note(point: Point) -> None:
        if point.target == "COMMIT":
            found.append(point.target)

    with watch_points(note, file.parent):
        yield found


async def test_changes_that_come_together_are_one_commit_and_are_refused_alone(
    tmp_path: Path,
) -> None:
    path = tmp_path / "ledger.db"
    with counted_commits(path) as commits:
        ledger = await Ledger.open(path)
        commits.clear()
        records = [make_record(f"c{number}", memory=400, cores=1) for number in range(5)]
        begun = (ledger.begin(record, {"gpu-0": CAPACITY}) for record in records)
        outcomes = await asyncio.gather(*begun, return_exceptions=True)
    assert outcomes[:2] == [None, None]
    assert all(isinstance(outcome, CardTakenError) for outcome in outcomes[2:])
    assert "held by claims c0, c1" in str(outcomes[4])
    assert [record.binding.claim_uid for record in await ledger.records()] == ["c0", "c1"]
    assert len(commits) == 1
    await ledger.close()


async def test_changes_that_cannot_be_made_together_are_made_one_by_one(tmp_path: Path) -> None:
    """A card index that is broken for one claim says so to that claim."""
    path = tmp_path / "ledger.db"
    ledger = await Ledger.open(path)
    with sqlite3.connect(path) as other:
        other.execute(
            "CREATE TRIGGER full BEFORE INSERT ON claims WHEN new.uid = 'c2' "
            "BEGIN SELECT RAISE(ABORT, 'no room for c2'); END"
        )
    records = [make_record(f"c{number}", memory=1, cores=1) for number in range(4)]
    begun = (ledger.begin(record, {}) for record in records)
    outcomes = await asyncio.gather(*begun, return_exceptions=True)

    assert [outcome is None for outcome in outcomes] == [True, True, False, True]
    assert isinstance(outcomes[2], RetryError)
    assert "no room for c2" in str(outcomes[2])
    assert [r.binding.claim_uid for r in await ledger.records()] == ["c0", "c1", "c3"]
    await ledger.close()


async def test_whoever_shares_the_thread_changes_and_looks_up_without_waiting(
    tmp_path: Path,
) -> None:
    path = tmp_path / "ledger.db"
    records = [make_record(f"c{number}", memory=600, cores=1) for number in range(2)]
    with ThreadPoolExecutor(max_workers=1) as executor, counted_commits(path) as commits:
        ledger = await Ledger.open(path, executor=executor)
        commits.clear()

        def work() -> tuple[list[Exception | None], ClaimRecord | None]:
            changes = [
                *(describe_intent(record, {"gpu-0": CAPACITY}) for record in records),
                describe_end("c0", "boot-2"),
                describe_end("c1", "boot-2"),
            ]
            return ledger.change_together(changes), ledger.look_up("c0")

        loop = asyncio.get_running_loop()
        errors, found = await loop.run_in_executor(executor, work)
        await ledger.close()
        assert await loop.run_in_executor(executor, str, "still there")
    assert [type(error) for error in errors] == [type(None), CardTakenError, type(None), RetryError]
    assert found == replace(records[0], ready=True, boot_id="boot-2")
    assert len(commits) == 1


async def test_a_bug_in_the_use_of_the_file_is_not_explained_by_the_disk(tmp_path: Path) -> None:
    ledger = await Ledger.open(tmp_path / "ledger.db")
    with pytest.raises(sqlite3.ProgrammingError, match="thread") as caught:
        ledger.look_up("a")
    assert caught.value.__cause__ is None
    await ledger.close()


@pytest.mark.parametrize(
    ("change", "level"),
    [
        (describe_intent(make_record("plain", memory=1, cores=1), {}), 1),
        (describe_intent(make_record("divided", memory=1, cores=1, part=PART), {}), 2),
        (describe_end("plain", "boot"), 2),
        (describe_removal("plain"), 2),
    ],
    ids=["intent", "intent of MIG instances", "end", "removal"],
)
async def test_only_an_intent_may_be_lost_in_a_power_cut(
    tmp_path: Path, change: Change, level: int
) -> None:
    """By SQLite's level: 1 (NORMAL) does not wait for the disk at a commit, 2 (FULL) does."""
    levels: list[int] = []

    def watched(connection: sqlite3.Connection, *arguments: object) -> None:
        levels.extend(connection.execute("PRAGMA synchronous").fetchone())
        change.work(connection, *arguments)

    with ThreadPoolExecutor(max_workers=1) as executor:
        ledger = await Ledger.open(tmp_path / "ledger.db", executor=executor)
        loop = asyncio.get_running_loop()
        changes = [replace(change, work=watched)]
        await loop.run_in_executor(executor, ledger.change_together, changes)
        await ledger.close()
    assert levels == [level]


actions = st.lists(
    st.tuples(
        st.sampled_from(["begin", "begin", "begin", "remove"]),
        st.integers(0, 5),
        st.integers(1, 700),
        st.integers(0, 100),
        st.booleans(),
        st.booleans(),
    ),
    max_size=20,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(actions)
def test_the_sum_of_shares_never_exceeds_a_card(
    steps: list[tuple[str, int, int, int, bool, bool]],
) -> None:
    async def run() -> None:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
            ledger = await Ledger.open(Path(directory) / "ledger.db")
            model: dict[str, ClaimRecord] = {}
            for verb, number, memory, cores, admin, exclusive in steps:
                uid = f"uid-{number}"
                if verb == "remove":
                    await ledger.remove(uid)
                    model.pop(uid, None)
                    continue
                record = make_record(
                    uid, memory=memory, cores=cores, admin=admin, exclusive=exclusive and not admin
                )
                wanted = {**model, uid: record}
                try:
                    await ledger.begin(record, {"gpu-0": CAPACITY})
                except RetryError:
                    assert not fits(wanted)
                else:
                    assert fits(wanted)
                    model = wanted
            stored = {record.binding.claim_uid: record for record in await ledger.records()}
            assert stored == model
            await ledger.close()

    asyncio.run(run())


def fits(records: dict[str, ClaimRecord]) -> bool:
    devices = [d for record in records.values() for d in record.binding.devices if not d.admin]
    if any(device.exclusive for device in devices) and len(devices) > 1:
        return False
    return (
        sum(device.consumed_memory_mib for device in devices) <= CAPACITY.memory_mib
        and sum(device.consumed_cores for device in devices) <= CAPACITY.cores
        and sum(device.consumed_slots for device in devices) <= CAPACITY.slots
    )


async def test_a_ready_claim_stays_ready_when_it_is_begun_again(tmp_path: Path) -> None:
    ledger = await Ledger.open(tmp_path / "ledger.db")
    record = make_record("a", memory=1, cores=1)
    await ledger.begin(record, {"gpu-0": CAPACITY})
    await ledger.finish("a", "boot-2")
    await ledger.begin(record, {"gpu-0": CAPACITY})

    found = await ledger.find("a")
    await ledger.close()

    assert found is not None
    assert (found.ready, found.boot_id) == (True, "boot-2")


async def test_less_of_a_card_leaves_its_claims_and_lets_no_new_one_in(tmp_path: Path) -> None:
    ledger = await Ledger.open(tmp_path / "ledger.db")
    less = {"gpu-0": CardCapacity(memory_mib=500, cores=50, slots=1)}
    held = make_record("held", memory=900, cores=90)
    await ledger.begin(held, {"gpu-0": CAPACITY})
    await ledger.begin(held, less)
    await ledger.begin(make_record("held", memory=800, cores=90), less)
    with pytest.raises(RetryError, match="memory MiB 801 of 500"):
        await ledger.begin(make_record("held", memory=801, cores=90), less)
    with pytest.raises(RetryError, match="no room"):
        await ledger.begin(make_record("new", memory=1, cores=0), less)
    await ledger.close()


async def test_the_log_is_gone_for_good_before_anything_takes_its_room(tmp_path: Path) -> None:
    """Some file systems give room away again at once (ext4 with ``data=writeback``).

    A log that a power cut brings back has others' bytes in it then, and SQLite believes what is
    before them.
    """
    points: list[str] = []

    def note(point: Point) -> None:
        points.append(f"{point.verb} {Path(point.target).name}")

    ledger = await Ledger.open(tmp_path / "ledger.db")
    with watch_points(note, tmp_path):
        await ledger.close()

    assert points.index(f"fsync {tmp_path.name}") < points.index("open reserve")
