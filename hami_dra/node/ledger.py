"""What is prepared on this node, in SQLite.

The ledger is what Unprepare works from (the claim may be gone), and the last line of defence
against two owners of one share: a transaction that would take more of a card than is published
fails. One thread owns the connection; every change is on disk when its call returns. Other
processes may use the same file (see `ledgerfile`), and the file may be lost and filled anew while
claims are worked on; whoever meets that tries again.
"""

import asyncio
import errno
import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from operator import gt
from pathlib import Path
from typing import Final, Self, TypeVar

import msgspec

from hami_dra import __version__
from hami_dra.contract.errors import RetryError
from hami_dra.node.ledgerfile import STEPS, DamageError, LedgerFile, is_damage, transaction
from hami_dra.node.reserve import Reserve
from hami_dra.policy.binding import Binding, exclude_each_other
from hami_dra.policy.devices import CardCapacity
from hami_dra.service.groups import Groups

_CODE: Final = 0xFF
"""SQLite's primary result code, without its extension."""
_FULL: Final = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN})
"""What a full disk looks like: the index beside the log fails in other words than the log."""
_NOTHING: Final = (-1, -1, -1, -1, -1)
_PART: Final = b'"mig":{'
"""What a record with a part of a card has in its text, and no other."""

_FILE_ERRORS: Final = (OSError, sqlite3.DatabaseError, DamageError)

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


class CardTakenError(RetryError):
    """A card has no room for a claim.

    Attributes:
        holders: UIDs of the claims that have the rest of it.
    """

    def __init__(self, message: str, holders: tuple[str, ...]) -> None:
        super().__init__(message)
        self.holders = holders


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be done in a transaction.

    Attributes:
        work: Takes the connection and the arguments.
        arguments: More for `work`.
        durable: Whether it is to survive a power cut; else one that does brings it along.
        last_resort: Whether to go on in the reserve if the disk is full.
    """

    work: Callable[..., None]
    arguments: tuple[object, ...]
    durable: bool = True
    last_resort: bool = False


class Ledger:
    """The ledger of one node; made by `open`.

    Every method that waits may be cancelled: its change is then made or not, never half.
    """

    def __init__(
        self, file: LedgerFile, executor: ThreadPoolExecutor, reserve: Reserve, *, owned: bool
    ) -> None:
        self._file = file
        self._executor = executor
        self._owned = owned
        self._reserve = reserve
        self._changes: Groups[Change, None] = Groups(self.change_together, executor)
        self._finds: Groups[str, list[ClaimRecord]] = Groups(self._find_all, executor)

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        copies: Callable[[], Iterable[ClaimRecord]] = tuple,
        alone: Callable[[], bool] = lambda: True,
        steps: tuple[str, ...] = STEPS,
        executor: ThreadPoolExecutor | None = None,
    ) -> Self:
        """Open or create a ledger; one that cannot be read is replaced.

        Args:
            path: Of the file.
            executor: The one thread that uses the file, if others have work for it; it outlives
                the ledger. `change_together` and `look_up` are for them.
            copies: Returns the claims that a new file is to hold. Blocking.
            alone: Whether no other process uses the file. Blocking.
            steps: See `LedgerFile`.

        Raises:
            RetryError: The file cannot be used at the moment: a full or read-only disk, say.
        """
        own = None
        if executor is None:
            executor = own = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger")

        def fill(connection: sqlite3.Connection) -> int:
            count = 0
            for record in copies():
                _put(connection, record)
                _mark_ready(connection, record.binding.claim_uid, record.boot_id)
                count += 1
            return count

        ledger = cls(
            LedgerFile(path, fill=fill, check=_check_record, alone=alone, steps=steps),
            executor,
            Reserve(path.parent),
            owned=own is not None,
        )
        try:
            await ledger._run(lambda _: None, last_resort=True)
        except BaseException:
            if own is not None:
                own.shutdown()
            raise
        return ledger

    @property
    def restored(self) -> int:
        """How many claims came from copies because a file was lost."""
        return self._file.restored

    async def close(self) -> None:
        """Close the file; what that frees of a full disk is kept for the next `open`."""
        await asyncio.get_running_loop().run_in_executor(self._executor, self._close)
        if self._owned:
            self._executor.shutdown()

    async def begin(self, record: ClaimRecord, capacities: Mapping[str, CardCapacity]) -> None:
        """Record the intent to prepare a claim, if the cards have room for it.

        A claim that is ready stays ready: its containers may be running. What a claim holds of a
        card already is not asked for again, so that it stays when less of the card is offered.

        Raises:
            CardTakenError: A card is taken; names the claims that hold it.
        """
        await self._change(replace(describe_intent(record, capacities), durable=True))

    async def finish(self, uid: str, boot_id: str) -> None:
        """Record that a claim is ready.

        Raises:
            RetryError: The ledger was lost since `begin`; begin again.
        """
        await self._change(describe_end(uid, boot_id))

    async def note(self, record: ClaimRecord) -> None:
        """Replace the record of a claim that has begun: what was made for it meanwhile.

        Raises:
            RetryError: The ledger was lost since `begin`; begin again.
        """
        await self._change(Change(_note, (record,)))

    async def find(self, uid: str) -> ClaimRecord | None:
        """Return a claim's record."""
        found = await self._explained(self._finds.do(uid))
        return found[0] if found else None

    async def records(self) -> list[ClaimRecord]:
        """Return all records, by UID."""
        return await self._run(_select, "ORDER BY uid")

    async def remove(self, uid: str) -> None:
        """Forget a claim, also on a full disk. Idempotent."""
        await self._change(describe_removal(uid))

    async def keep_reserve(self) -> None:
        """Keep room on the disk for `remove` and the next `open`. Idempotent.

        Raises:
            RetryError: The disk has no room for anything new.
        """
        await asyncio.get_running_loop().run_in_executor(self._executor, self._reserve.hold)

    async def _run(
        self, work: Callable[..., T], *arguments: object, last_resort: bool = False
    ) -> T:
        """Work in the ledger's thread.

        Args:
            work: Takes the connection and the arguments.
            arguments: More for `work`.
            last_resort: Whether to go on in the reserve if the disk is full.
        """
        attempt = self._attempt_to_the_last if last_resort else self._attempt
        loop = asyncio.get_running_loop()
        return await self._explained(loop.run_in_executor(self._executor, attempt, work, arguments))

    def change_together(self, changes: Sequence[Change]) -> list[Exception | None]:
        """Make changes with one commit, in the ledger's thread; return the error of each. Blocking.

        What one of them is refused does not concern the others. Nothing is raised.
        """
        return [
            None if error is None else self._explain(error) for error in self._attempt_all(changes)
        ]

    def look_up(self, uid: str) -> ClaimRecord | None:
        """Do as `find`, in the ledger's thread. Blocking."""
        with self._explaining():
            (found,) = self._find_all((uid,))
        return found[0] if found else None

    async def _change(self, change: Change) -> None:
        """Make a change in the ledger's thread; those that come together share a commit."""
        await self._changes.do(change)

    async def _explained(self, answer: Awaitable[T]) -> T:
        with self._explaining():
            return await answer

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except _FILE_ERRORS as error:
            explained = self._explain(error)
            if explained is error:
                raise
            raise explained from error

    def _explain(self, error: Exception) -> Exception:
        """Return an error of the file in words that say what to do; another one as it is."""
        if isinstance(error, sqlite3.ProgrammingError) or not isinstance(error, _FILE_ERRORS):
            return error  # a bug, which no disk explains, or a refusal
        explained = RetryError(
            f"the ledger cannot be used: {self._file.path}: {error}; --state-dir must be a "
            "writable directory on a local disk with room"
        )
        explained.__cause__ = error
        return explained

    def _attempt_all(self, changes: Sequence[Change]) -> list[Exception | None]:
        if len(changes) > 1:
            try:
                return _change_all(self._file.connection(), changes)
            except _FILE_ERRORS:
                pass  # nothing was changed; each alone, as it is done where the file is ill
        return [self._change_alone(change) for change in changes]

    def _change_alone(self, change: Change) -> Exception | None:
        attempt = self._attempt_to_the_last if change.last_resort else self._attempt
        try:
            attempt(_change_one, (change,))
        except Exception as error:  # noqa: BLE001 - it is the caller's
            return error
        return None

    def _find_all(self, uids: Sequence[str]) -> list[list[ClaimRecord]]:
        return self._attempt(_select_each, (uids,))

    def _close(self) -> None:
        self._file.close()
        with suppress(RetryError):
            self._reserve.hold()

    def _attempt_to_the_last(self, work: Callable[..., T], arguments: tuple[object, ...]) -> T:
        try:
            return self._attempt(work, arguments)
        except (OSError, sqlite3.OperationalError) as error:
            if not _is_full(error) or not self._reserve.release():
                raise
        return self._attempt(work, arguments)

    def _attempt(self, work: Callable[..., T], arguments: tuple[object, ...]) -> T:
        """Work on the file as it is; once more on a new one if it proves to be damaged."""
        try:
            return work(self._file.connection(), *arguments)
        except (sqlite3.DatabaseError, DamageError) as error:
            if not is_damage(error):
                raise
            self._file.replace(str(error))
        return work(self._file.connection(), *arguments)


def describe_intent(record: ClaimRecord, capacities: Mapping[str, CardCapacity]) -> Change:
    """Return what `Ledger.begin` does.

    A power cut may undo it: kubelet has no answer yet, and whatever follows from an intent is
    removed after one, or gone (MIG instances, which are made with a durable one nevertheless).
    """
    parts = any(device.mig is not None for device in record.binding.devices)
    return Change(_begin, (record, capacities), durable=parts)


def describe_end(uid: str, boot_id: str) -> Change:
    """Return what `Ledger.finish` does."""
    return Change(_finish, (uid, boot_id))


def describe_removal(uid: str) -> Change:
    """Return what `Ledger.remove` does."""
    return Change(_remove, (uid,), last_resort=True)


def _change_one(connection: sqlite3.Connection, change: Change) -> None:
    with transaction(connection, durable=change.durable):
        change.work(connection, *change.arguments)


def _change_all(
    connection: sqlite3.Connection, changes: Sequence[Change]
) -> list[Exception | None]:
    """Make changes in one transaction; what is refused is undone, and the others are not."""
    outcomes: list[Exception | None] = []
    with transaction(connection, durable=any(change.durable for change in changes)):
        for change in changes:
            connection.execute("SAVEPOINT change")
            try:
                change.work(connection, *change.arguments)
            except RetryError as error:
                connection.execute("ROLLBACK TO change")
                outcomes.append(error)
            else:
                outcomes.append(None)
            connection.execute("RELEASE change")
    return outcomes


def _is_full(error: OSError | sqlite3.OperationalError) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOSPC
    # An error that this module raises has no code.
    return getattr(error, "sqlite_errorcode", -1) & _CODE in _FULL


def _begin(
    connection: sqlite3.Connection, record: ClaimRecord, capacities: Mapping[str, CardCapacity]
) -> None:
    uid = record.binding.claim_uid
    held = _sum_shares(connection, uid)
    _put(connection, record)
    grown = {
        device
        for device, taken in _sum_shares(connection, uid).items()
        if any(map(gt, taken, held.get(device, _NOTHING)))
    }
    for device in sorted(grown & capacities.keys()):
        _check_card(connection, uid, device, capacities[device])
    if grown:
        _check_parts(connection, record)


def _note(connection: sqlite3.Connection, record: ClaimRecord) -> None:
    uid = record.binding.claim_uid
    changed = connection.execute(
        "UPDATE claims SET record = ?, writer = ? WHERE uid = ?",
        (encode_record(record), __version__, uid),
    )
    if not changed.rowcount:
        raise RetryError(f"the ledger lost claim {uid} while it was prepared")


def _sum_shares(connection: sqlite3.Connection, uid: str) -> dict[str, tuple[int, ...]]:
    """Return what a claim takes of each card: memory, cores, slots, whole, number of shares."""
    rows = connection.execute(
        "SELECT device, sum(memory_mib), sum(cores), sum(slots), max(exclusive), count(*) "
        "FROM shares WHERE uid = ? GROUP BY device",
        (uid,),
    )
    return {device: tuple(taken) for device, *taken in rows}


def _put(connection: sqlite3.Connection, record: ClaimRecord) -> None:
    """Store a claim and its shares. A claim that is ready stays ready, in its boot."""
    uid = record.binding.claim_uid
    known = _select(connection, "WHERE uid = ?", uid)
    if not known or (known[0].binding, known[0].library) != (record.binding, record.library):
        # Else the row stays as it is: a newer program may have written more into it.
        connection.execute(
            "INSERT INTO claims (uid, boot_id, ready, record, writer) VALUES (?, ?, 0, ?, ?) "
            "ON CONFLICT (uid) DO UPDATE SET record = excluded.record, writer = excluded.writer",
            (uid, record.boot_id, encode_record(record), __version__),
        )
    connection.execute("DELETE FROM shares WHERE uid = ?", (uid,))
    connection.executemany(
        "INSERT INTO shares (uid, device, exclusive, memory_mib, cores, slots) "
        "VALUES (?, ?, ?, ?, ?, ?)",
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


def _finish(connection: sqlite3.Connection, uid: str, boot_id: str) -> None:
    if not _mark_ready(connection, uid, boot_id):
        raise RetryError(f"the ledger lost claim {uid} while it was prepared")


def _mark_ready(connection: sqlite3.Connection, uid: str, boot_id: str) -> bool:
    changed = connection.execute(
        "UPDATE claims SET ready = 1, boot_id = ? WHERE uid = ?", (boot_id, uid)
    )
    return changed.rowcount == 1


def _remove(connection: sqlite3.Connection, uid: str) -> None:
    connection.execute("DELETE FROM claims WHERE uid = ?", (uid,))


def _select_each(connection: sqlite3.Connection, uids: Sequence[str]) -> list[list[ClaimRecord]]:
    return [_select(connection, "WHERE uid = ?", uid) for uid in uids]


def _select(connection: sqlite3.Connection, clause: str, *values: object) -> list[ClaimRecord]:
    rows = connection.execute(
        f"SELECT uid, record, boot_id, ready FROM claims {clause}",  # noqa: S608 - constants
        values,
    ).fetchall()
    return [
        ClaimRecord(
            binding=stored.binding, library=stored.library, boot_id=boot_id, ready=bool(ready)
        )
        for uid, raw, boot_id, ready in rows
        for stored in (_check_record(uid, raw),)
    ]


def _check_card(
    connection: sqlite3.Connection, uid: str, device: str, capacity: CardCapacity
) -> None:
    memory, cores, slots, exclusive, count = connection.execute(
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
    others = connection.execute(
        "SELECT DISTINCT uid FROM shares WHERE device = ? AND uid <> ? ORDER BY uid",
        (device, uid),
    ).fetchall()
    holders = tuple(str(other) for (other,) in others)
    raise CardTakenError(
        f"card {device} has no room for claim {uid}: {', '.join(over)}; held by claims "
        f"{', '.join(holders) or 'nobody else'} (a pod that was deleted by force may still be "
        "ending)",
        holders,
    )


def _check_parts(connection: sqlite3.Connection, record: ClaimRecord) -> None:
    """Refuse parts of a card that others have, and shares of a card that others divide."""
    uid = record.binding.claim_uid
    mine = [device for device in record.binding.devices if not device.admin]
    if any(device.mig is not None for device in mine):
        others = _select(connection, "WHERE uid <> ?", uid)
    else:
        # Shares exclude parts only, which are taken whole: on most nodes no record is read.
        whole = "WHERE uid IN (SELECT uid FROM shares WHERE exclusive) AND uid <> ?"
        others = _select(connection, f"{whole} AND instr(record, ?)", uid, _PART)
    for other in others:
        for rival in other.binding.devices:
            found = next((each for each in mine if exclude_each_other(each, rival)), None)
            if found is not None and not rival.admin:
                holder = other.binding.claim_uid
                raise CardTakenError(
                    f"device {found.device} of claim {uid} and {rival.device} of claim {holder} "
                    "cannot exist on one card together (a pod that was deleted by force may still "
                    "be ending)",
                    (holder,),
                )


def _check_record(uid: str, raw: bytes) -> ClaimRecord:
    try:
        return decode_record(raw)
    except msgspec.MsgspecError as error:
        raise DamageError(f"record of {uid} cannot be read: {error}") from error


def encode_record(record: ClaimRecord) -> bytes:
    """Return a record as JSON."""
    return msgspec.json.encode(record)


def decode_record(raw: bytes) -> ClaimRecord:
    """Read a record; fields of a newer version are ignored.

    Raises:
        msgspec.MsgspecError: Not a record.
    """
    return msgspec.json.decode(raw, type=ClaimRecord)
