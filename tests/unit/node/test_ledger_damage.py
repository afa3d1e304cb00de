"""What happens to the ledger's file, and what the ledger then does: damage by damage."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from hami_dra.contract.errors import RetryError
from hami_dra.node.ledger import ClaimRecord, Ledger
from hami_dra.node.ledgerfile import MAJOR, STEPS
from tests.unit.node.test_ledger import CAPACITY, make_record

CARDS = {"gpu-0": CAPACITY}
OLD_RECORD = (
    b'{"binding":{"claim_uid":"a","namespace":"n","name":"a","devices":[]},'
    b'"library":"/lib","boot_id":"boot"}'
)
CURRENT = 1000 * MAJOR + len(STEPS)


@dataclass(frozen=True)
class Damage:
    """One thing that may happen to the file, and what must come of it.

    Attributes:
        strike: Does it to a ledger at a path.
        kept: Whether the very rows are still there; else they come from the copies.
        aside: Whether the old file is kept for a person to look at.
    """

    strike: Callable[[Path], None]
    kept: bool
    aside: bool


def overwrite(path: Path, offset: int, content: bytes) -> None:
    with path.resolve().open("r+b") as file:
        file.seek(offset)
        file.write(content)


def execute(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path.resolve(), isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


def delete(path: Path) -> None:
    path.unlink()


def delete_all(path: Path) -> None:
    for found in path.parent.glob("ledger*"):
        found.unlink()


def delete_target(path: Path) -> None:
    path.resolve().unlink()


def delete_log(path: Path) -> None:
    real = path.resolve()
    for suffix in ("-wal", "-shm"):
        real.with_name(real.name + suffix).unlink(missing_ok=True)


DAMAGES = {
    "nothing": Damage(lambda _: None, kept=True, aside=False),
    "header of another program": Damage(
        lambda p: overwrite(p, 0, b"this is no database!"), kept=False, aside=True
    ),
    "a page of zeros": Damage(lambda p: overwrite(p, 4096, bytes(4096)), kept=False, aside=True),
    "cut after a page": Damage(lambda p: os.truncate(p, 4096), kept=False, aside=True),
    "cut to nothing": Damage(lambda p: os.truncate(p, 0), kept=False, aside=True),
    "deleted": Damage(delete, kept=False, aside=True),
    "deleted with all that is beside it": Damage(delete_all, kept=False, aside=False),
    "the file behind the link deleted": Damage(delete_target, kept=False, aside=False),
    "a record that cannot be read": Damage(
        lambda p: execute(p, "UPDATE claims SET record = CAST('{' AS BLOB)"),
        kept=False,
        aside=True,
    ),
    "a table dropped": Damage(lambda p: execute(p, "DROP TABLE shares"), kept=False, aside=True),
    "of a newer minor version": Damage(
        lambda p: execute(
            p,
            "ALTER TABLE claims ADD COLUMN colour TEXT NOT NULL DEFAULT 'red'",
            "ALTER TABLE shares ADD COLUMN weight INTEGER NOT NULL DEFAULT 7",
            "CREATE TABLE moons (name TEXT) STRICT",
            f"PRAGMA user_version = {CURRENT + 5}",
        ),
        kept=True,
        aside=False,
    ),
    "of a newer major version": Damage(
        lambda p: execute(p, f"PRAGMA user_version = {CURRENT + 1000}"), kept=False, aside=True
    ),
}
AT_START_ONLY = {"of a newer major version", "of a newer minor version"}


def files_of(directory: Path) -> list[Path]:
    return list(directory.glob("ledger-*.db"))


async def put(ledger: Ledger, uid: str, memory: int) -> ClaimRecord:
    record = make_record(uid, memory=memory, cores=10)
    await ledger.begin(record, CARDS)
    await ledger.finish(uid, "boot")
    found = await ledger.find(uid)
    assert found is not None
    return found


async def is_taken(ledger: Ledger) -> bool:
    """Whether 700 of the card's 1000 MiB still count."""
    try:
        await ledger.begin(make_record("other", memory=400, cores=1), CARDS)
    except RetryError as error:
        return "memory MiB 1100 of 1000" in str(error)
    return False


@pytest.mark.parametrize("name", DAMAGES)
async def test_damage_while_nobody_runs(tmp_path: Path, name: str) -> None:
    damage, path = DAMAGES[name], tmp_path / "ledger.db"
    ledger = await Ledger.open(path)
    record = await put(ledger, "a", 700)
    await ledger.close()
    damage.strike(path)

    ledger = await Ledger.open(path, copies=lambda: [record])

    assert await ledger.records() == [record]
    assert await is_taken(ledger), "nothing is allocated twice"
    assert ledger.restored == (0 if damage.kept else 1)
    assert len(files_of(tmp_path)) == 1 + damage.aside
    await ledger.close()


@pytest.mark.parametrize("name", [name for name in DAMAGES if name not in AT_START_ONLY])
async def test_damage_while_it_is_open(tmp_path: Path, name: str) -> None:
    damage, path = DAMAGES[name], tmp_path / "ledger.db"
    known: list[ClaimRecord] = []
    ledger = await Ledger.open(path, copies=lambda: known)
    known.append(await put(ledger, "a", 700))
    damage.strike(path)

    # One call may fail and is tried again by whoever made it; no more than that.
    with suppress(RetryError):
        await ledger.records()
    assert await ledger.records() == known
    assert await is_taken(ledger), "nothing is allocated twice"
    await ledger.close()


async def test_a_log_that_is_deleted_under_an_open_ledger_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    ledger = await Ledger.open(path)
    record = await put(ledger, "a", 700)
    delete_log(path)

    assert await ledger.records() == [record]
    await ledger.close()
    ledger = await Ledger.open(path)
    assert await ledger.records() == [record]
    assert ledger.restored == 0
    await ledger.close()


async def test_a_claim_that_was_lost_between_begin_and_finish_is_begun_again(
    tmp_path: Path,
) -> None:
    path = tmp_path / "ledger.db"
    ledger = await Ledger.open(path)
    await ledger.begin(make_record("a", memory=1, cores=1), CARDS)
    delete(path)

    with pytest.raises(RetryError, match="lost claim a"):
        await ledger.finish("a", "boot")
    await ledger.close()


async def test_two_processes_survive_the_replacement_of_their_file_by_one_of_them(
    tmp_path: Path,
) -> None:
    path = tmp_path / "ledger.db"
    known: list[ClaimRecord] = []
    one, other = [await Ledger.open(path, copies=lambda: known) for _ in range(2)]
    known.append(await put(one, "a", 600))
    assert await other.records() == known
    overwrite(path, 4096, bytes(4096))
    with suppress(RetryError):
        await one.records()

    known.append(await put(one, "b", 300))
    assert await other.records() == known
    with pytest.raises(RetryError, match="no room"):
        await other.begin(make_record("c", memory=200, cores=1), CARDS)
    await other.close()
    assert await one.records() == known
    await one.close()
    reopened = await Ledger.open(path)
    assert await reopened.records() == known
    await reopened.close()


async def test_only_the_last_few_replaced_files_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    for _ in range(6):
        ledger = await Ledger.open(path)
        await ledger.close()
        overwrite(path, 0, b"no database")

    assert len(files_of(tmp_path)) == 4


async def test_a_newer_major_version_is_left_alone_while_its_process_lives(
    tmp_path: Path,
) -> None:
    path = tmp_path / "ledger.db"
    ledger = await Ledger.open(path)
    await put(ledger, "a", 1)
    await ledger.close()
    execute(path, f"PRAGMA user_version = {CURRENT + 1000}")

    with pytest.raises(RetryError, match="has to end first"):
        await Ledger.open(path, alone=lambda: False)
    execute(path, f"PRAGMA user_version = {CURRENT}")
    ledger = await Ledger.open(path)
    assert len(await ledger.records()) == 1
    await ledger.close()


async def test_two_versions_work_on_one_ledger(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    newer = (
        *STEPS,
        "ALTER TABLE claims ADD COLUMN colour TEXT NOT NULL DEFAULT 'red';",
        "CREATE TABLE moons (name TEXT) STRICT;\nCREATE INDEX moons_by_name ON moons (name);",
    )
    old = await Ledger.open(path)
    first = await put(old, "a", 500)

    new = await Ledger.open(path, steps=newer)
    second = await put(new, "b", 300)
    execute(path, "UPDATE claims SET colour = 'blue'")

    assert await old.records() == await new.records() == [first, second]
    with pytest.raises(RetryError, match="no room"):
        await old.begin(make_record("c", memory=201, cores=1), CARDS)
    await old.begin(make_record("b", memory=300, cores=10), CARDS)
    await new.close()
    await old.close()
    downgraded = await Ledger.open(path)
    assert await downgraded.records() == [first, second]
    await downgraded.close()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT colour FROM claims").fetchall() == [("blue",)] * 2
        assert connection.execute("PRAGMA user_version").fetchone() == (CURRENT + 2,)


async def test_what_a_newer_program_wrote_into_a_record_stays(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    ledger = await Ledger.open(path)
    record = await put(ledger, "a", 1)
    execute(path, "UPDATE claims SET record = CAST(json_set(record, '$.colour', 'blue') AS BLOB)")

    assert await ledger.records() == [record]
    await ledger.begin(record, CARDS)
    await ledger.close()

    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute(
            "SELECT json_extract(record, '$.colour') FROM claims"
        ).fetchall() == [("blue",)]


@pytest.mark.parametrize("minor", range(1, len(STEPS)))
async def test_every_older_version_is_brought_up_to_date(tmp_path: Path, minor: int) -> None:
    path = tmp_path / "ledger.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript("".join(STEPS[:minor]))
        connection.execute(f"PRAGMA user_version = {minor}")
        connection.execute(
            "INSERT INTO claims (uid, boot_id, ready, record) VALUES ('a', 'boot', 1, ?)",
            (OLD_RECORD,),
        )

    ledger = await Ledger.open(path)

    (record,) = await ledger.records()
    assert (record.binding.claim_uid, record.ready) == ("a", True)
    assert ledger.restored == 0
    await ledger.close()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (CURRENT,)


async def test_a_writer_that_does_not_end_is_a_passing_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hami_dra.node.ledgerfile._BUSY_SECONDS", 0.05)
    path = tmp_path / "ledger.db"
    ledger = await Ledger.open(path)
    record = make_record("a", memory=1, cores=1)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(RetryError, match="locked"):
            await ledger.begin(record, CARDS)
        assert await ledger.records() == []
        other.execute("ROLLBACK")
    await ledger.begin(record, CARDS)
    await ledger.close()


DISK = """
import asyncio, os, subprocess, sys
from pathlib import Path
from hami_dra.contract.errors import RetryError
from hami_dra.node.ledger import Ledger
from tests.unit.node.test_ledger_damage import CARDS, put
from tests.unit.node.test_ledger import make_record

mount = Path(sys.argv[1])
state = mount / "state"

def remount(options):
    subprocess.run(["mount", "-o", f"remount,{options}", str(mount)], check=True)

def fill():
    with open(mount / "ballast", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass

async def refused(work):
    try:
        await work
    except RetryError as error:
        return str(error)
    raise SystemExit("it was not refused")

async def main():
    options = "size=1m,mode=0700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(mount)], check=True)
    ledger = await Ledger.open(state / "ledger.db")
    kept = await put(ledger, "a", 700)
    fill()
    refusals = 0
    for number in range(400):
        try:
            await put(ledger, f"n-{number}", 0)
        except RetryError as error:
            refusals += 1
            assert "full" in str(error) or "disk I/O" in str(error), error
            if refusals > 2:
                break
    assert refusals, "the disk was never full"
    assert kept in await ledger.records()
    (mount / "ballast").unlink()
    assert "no room" in await refused(ledger.begin(make_record("b", memory=301, cores=1), CARDS))
    await put(ledger, "after", 1)
    count = len(await ledger.records())
    await ledger.close()

    (mount / "bare").mkdir()  # without a reserve
    fill()
    assert "ledger cannot be used" in await refused(Ledger.open(mount / "bare" / "ledger.db"))
    (mount / "ballast").unlink()
    remount("ro")
    assert "ledger cannot be used" in await refused(Ledger.open(state / "ledger.db"))
    remount("rw")
    ledger = await Ledger.open(state / "ledger.db", copies=lambda: [kept])
    assert (len(await ledger.records()), ledger.restored) == (count, 0)

    # Damaged and no room for a new file: what is there stays until there is.
    os.truncate((state / "ledger.db").resolve(), 4096)
    fill()
    print(await refused(ledger.records()))
    (mount / "ballast").unlink()
    assert await ledger.records() == [kept]
    await ledger.close()
    print("well")

asyncio.run(main())
"""


def test_a_disk_that_is_full_or_read_only_is_waited_for(tmp_path: Path) -> None:
    """On a small tmpfs in a mount namespace of its own; needs root."""
    done = subprocess.run(  # noqa: S603 - this interpreter
        ["unshare", "--mount", "--", sys.executable, "-c", DISK, str(tmp_path)],  # noqa: S607
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.stdout.endswith("well\n"), done.stdout + done.stderr
