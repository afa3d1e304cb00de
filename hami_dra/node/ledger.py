"""What is prepared on this node, in SQLite.

The ledger is what Unprepare works from (the claim may be gone), and the last line of defence
against two owners of one share: a transaction that would take more of a card than is published
fails. One thread owns the connection; every change is on disk when its call returns.
"""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from operator import gt
from pathlib import Path
from typing import Final, Self, TypeVar

import msgspec
import structlog

from hami_dra.contract.errors import FatalError, RetryError
from hami_dra.policy.binding import Binding
from hami_dra.policy.devices import CardCapacity

_log = structlog.get_logger(__name__)

_VERSION: Final = 1
_SCHEMA: Final = """
CREATE TABLE claims (
  uid TEXT PRIMARY KEY,
  boot_id TEXT NOT NULL,     -- boot in which it was last prepared
  ready INTEGER NOT NULL,    -- 0: intended, no answer was given
  record BLOB NOT NULL       -- JSON of ClaimRecord
) STRICT;
CREATE TABLE shares (
  uid TEXT NOT NULL REFERENCES claims (uid) ON DELETE CASCADE,
  device TEXT NOT NULL,
  exclusive INTEGER NOT NULL,
  memory_mib INTEGER NOT NULL,
  cores INTEGER NOT NULL,
  slots INTEGER NOT NULL
) STRICT;
CREATE INDEX shares_by_device ON shares (device);
"""
_BUSY_SECONDS: Final = 5.0
_NOTHING: Final = (-1, -1, -1, -1, -1)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class ClaimRecord:
    """One prepared claim; enough to render everything again without the API server.

    Attributes:
        binding: The plan.
        library: Path of the libvgpu.so that this claim's containers have, for its whole life.
        boot_id: Boot in which it was last prepared.
        ready: Whether the kubelet was (about to be) told.
    """

    binding: Binding
    library: str
    boot_id: str
    ready: bool = False


class Ledger:
    """The ledger of one node; made by `open`.

    Every method may be cancelled: its change is then made or not, never half.

    Attributes:
        empty_start: Whether this file began empty: a new node, or a ledger that was lost.
    """

    def __init__(self, connection: sqlite3.Connection, executor: ThreadPoolExecutor) -> None:
        self._connection = connection
        self._executor = executor
        self.empty_start = False

    @classmethod
    async def open(cls, path: Path) -> Self:
        """Open or create a ledger; one that cannot be read is moved aside.

        Raises:
            FatalError: The directory is not usable.
        """
        executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger")
        loop = asyncio.get_running_loop()
        try:
            connection, empty_start = await loop.run_in_executor(executor, _open, path)
        except (OSError, sqlite3.Error) as error:
            executor.shutdown()
            raise FatalError(
                f"ledger {path} cannot be opened: {error}; --state-dir must be a writable "
                "directory on a local disk"
            ) from error
        ledger = cls(connection, executor)
        ledger.empty_start = empty_start
        return ledger

    async def close(self) -> None:
        """Close the file."""
        await self._run(self._connection.close)
        self._executor.shutdown()

    async def begin(self, record: ClaimRecord, capacities: Mapping[str, CardCapacity]) -> None:
        """Record the intent to prepare a claim, if the cards have room for it.

        A claim that is ready stays ready: its containers may be running. What a claim holds of a
        card already is not asked for again, so that it stays when less of the card is offered.

        Raises:
            RetryError: A card is taken; names the claims that hold it.
        """
        await self._run(self._begin, record, capacities)

    async def finish(self, uid: str, boot_id: str) -> None:
        """Record that a claim is ready."""
        await self._run(
            self._execute, "UPDATE claims SET ready = 1, boot_id = ? WHERE uid = ?", boot_id, uid
        )

    async def restore(self, record: ClaimRecord) -> None:
        """Put a claim back that was found on disk, without asking whether there is room."""
        await self._run(self._begin, record, {})
        if record.ready:
            await self.finish(record.binding.claim_uid, record.boot_id)

    async def find(self, uid: str) -> ClaimRecord | None:
        """Return a claim's record."""
        found = await self._run(self._select, "WHERE uid = ?", uid)
        return found[0] if found else None

    async def records(self) -> list[ClaimRecord]:
        """Return all records, by UID."""
        return await self._run(self._select, "ORDER BY uid")

    async def remove(self, uid: str) -> None:
        """Forget a claim. Idempotent."""
        await self._run(self._execute, "DELETE FROM claims WHERE uid = ?", uid)

    async def _run(self, work: Callable[..., T], *arguments: object) -> T:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._executor, work, *arguments)
        except sqlite3.OperationalError as error:
            raise RetryError(f"the ledger cannot be written: {error}") from error

    def _execute(self, statement: str, *values: object) -> None:
        with self._connection:
            self._connection.execute(statement, values)

    def _select(self, clause: str, *values: object) -> list[ClaimRecord]:
        rows = self._connection.execute(
            f"SELECT record, boot_id, ready FROM claims {clause}",  # noqa: S608 - constants
            values,
        ).fetchall()
        return [
            ClaimRecord(
                binding=stored.binding, library=stored.library, boot_id=boot_id, ready=bool(ready)
            )
            for raw, boot_id, ready in rows
            for stored in (decode_record(raw),)
        ]

    def _begin(self, record: ClaimRecord, capacities: Mapping[str, CardCapacity]) -> None:
        uid = record.binding.claim_uid
        connection = self._connection
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(
                "INSERT INTO claims (uid, boot_id, ready, record) VALUES (?, ?, 0, ?) "
                "ON CONFLICT (uid) DO UPDATE SET record = excluded.record",
                (uid, record.boot_id, encode_record(record)),
            )
            held = self._sum_shares(uid)
            connection.execute("DELETE FROM shares WHERE uid = ?", (uid,))
            connection.executemany(
                "INSERT INTO shares VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (
                        uid,
                        device.device,
                        int(device.exclusive),
                        device.consumed_memory_mib,
                        device.consumed_cores,
                        device.consumed_slots,
                    )
                    for device in record.binding.devices
                    if not device.admin
                ],
            )
            for device, taken in sorted(self._sum_shares(uid).items()):
                grown = any(map(gt, taken, held.get(device, _NOTHING)))
                if grown and device in capacities:
                    self._check(uid, device, capacities[device])

    def _sum_shares(self, uid: str) -> dict[str, tuple[int, ...]]:
        """Return what a claim takes of each card: memory, cores, slots, whole, number of shares."""
        rows = self._connection.execute(
            "SELECT device, sum(memory_mib), sum(cores), sum(slots), max(exclusive), count(*) "
            "FROM shares WHERE uid = ? GROUP BY device",
            (uid,),
        )
        return {device: tuple(taken) for device, *taken in rows}

    def _check(self, uid: str, device: str, capacity: CardCapacity) -> None:
        memory, cores, slots, exclusive, count = self._connection.execute(
            "SELECT sum(memory_mib), sum(cores), sum(slots), max(exclusive), count(*) "
            "FROM shares WHERE device = ?",
            (device,),
        ).fetchone()
        over = [
            f"{name} {taken} of {limit}"
            for name, taken, limit in (
                ("memory MiB", memory, capacity.memory_mib),
                ("cores", cores, capacity.cores),
                ("slots", slots, capacity.slots),
            )
            if taken > limit
        ]
        if exclusive and count > 1:
            over = ["a whole card and other shares"]
        if not over:
            return
        others = self._connection.execute(
            "SELECT DISTINCT uid FROM shares WHERE device = ? AND uid <> ?", (device, uid)
        ).fetchall()
        held = ", ".join(other for (other,) in others) or "nobody else"
        raise RetryError(
            f"card {device} has no room for claim {uid}: {', '.join(over)}; held by claims {held} "
            "(a pod that was deleted by force may still be ending)"
        )


def encode_record(record: ClaimRecord) -> bytes:
    """Return a record as JSON."""
    return msgspec.json.encode(record)


def decode_record(raw: bytes) -> ClaimRecord:
    """Read a record; fields of a newer version are ignored.

    Raises:
        msgspec.MsgspecError: Not a record.
    """
    return msgspec.json.decode(raw, type=ClaimRecord)


def _open(path: Path) -> tuple[sqlite3.Connection, bool]:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    existed = path.exists()
    try:
        return _connect(path), not existed
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError) and not path.is_file():
            raise
        aside = path.with_name(f"{path.name}.bad-{time.time_ns()}")
        _log.error("ledger.corrupt", path=str(path), moved_to=str(aside), error=str(error))
        for suffix in ("", "-wal", "-shm"):
            old = path.with_name(path.name + suffix)
            if old.exists():
                old.rename(aside.with_name(aside.name + suffix))
        return _connect(path), True


def _connect(path: Path) -> sqlite3.Connection:
    # isolation_level None: transactions begin where we say so.
    connection = sqlite3.connect(
        path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=True
    )
    try:
        _set_up(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _set_up(connection: sqlite3.Connection) -> None:
    """Make the tables, or prove that they can be read."""
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    (health,) = connection.execute("PRAGMA quick_check").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if health != "ok" or mode != "wal":
        raise sqlite3.DatabaseError(f"quick_check says {health}, journal mode is {mode}")
    if version == 0:
        connection.executescript(
            f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;"
        )
    elif version != _VERSION:
        raise sqlite3.DatabaseError(f"schema {version}, this program knows {_VERSION}")
    for uid, raw in connection.execute("SELECT uid, record FROM claims"):
        try:
            decode_record(raw)
        except msgspec.MsgspecError as error:
            raise sqlite3.DatabaseError(f"record of {uid} cannot be read: {error}") from error
