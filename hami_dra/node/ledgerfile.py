"""The ledger's file: its schema, its versions, and what is done when it is damaged.

Several processes may have the file open, of different versions. A version is ``1000 * major +
minor`` in ``user_version``. A minor step only adds (a column with a default, a table, an index),
so that programs of the same major work on each other's files, whichever is older; a file of
another major is moved aside.

A file that cannot be used, or is gone, is replaced by one with the claims that have a copy beside
their directories. ``ledger.db`` is a link to the file in use, so that the new one appears by a
rename, complete; every process looks before each use whether it is another, and opens it then.
No file is renamed while it may be open: SQLite finds and removes a file's log by its name.
"""

import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

import structlog

from hami_dra.cdi.durable import sync_directory
from hami_dra.contract.errors import RetryError

_log = structlog.get_logger(__name__)

MAJOR: Final = 0
STEPS: Final = (
    # 1
    """
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
    """,
    # 2: which program wrote a row, for whoever looks into a failed update
    "ALTER TABLE claims ADD COLUMN writer TEXT NOT NULL DEFAULT '';",
)
"""What brings a file from one minor version to the next, a statement ending with its line.

Never change one; add one."""

_MINORS: Final = 1000
_BUSY_SECONDS: Final = 5.0
_SUFFIXES: Final = ("", "-wal", "-shm")
_KEPT_ASIDE: Final = 3
_DAMAGE: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_COLUMNS: Final = {
    "claims": {"uid", "boot_id", "ready", "record", "writer"},
    "shares": {"uid", "device", "exclusive", "memory_mib", "cores", "slots"},
}

Fill = Callable[[sqlite3.Connection], int]
"""Puts the claims that have a copy into a new file, and returns how many."""


class DamageError(Exception):
    """The file can be opened, and is not a ledger that this program can use."""


class NewerError(DamageError):
    """It is of a newer major version."""


class LedgerFile:
    """One connection to the ledger, kept alive through what may happen to the file.

    Belongs to one thread, and blocks.

    Args:
        path: Of the file.
        fill: See `Fill`.
        check: Called for each claim's UID and record; raises `DamageError` for one that cannot
            be read.
        alone: Whether no other process uses the file; asked before a newer one is moved aside.
        steps: `STEPS`; others only in tests of upgrades.
    """

    def __init__(
        self,
        path: Path,
        *,
        fill: Fill,
        check: Callable[[str, bytes], object],
        alone: Callable[[], bool] = lambda: True,
        steps: tuple[str, ...] = STEPS,
    ) -> None:
        self.path = path
        self._fill = fill
        self._check = check
        self._alone = alone
        self._steps = steps
        self._open: sqlite3.Connection | None = None
        self._file = path
        self._inodes: tuple[tuple[int, int] | None, ...] = ()
        self.restored = 0

    def connection(self) -> sqlite3.Connection:
        """Return the connection; to a new file, if there is one at the path by now.

        Raises:
            sqlite3.Error: The file cannot be used at the moment.
            OSError: So can't its directory.
            RetryError: A newer process has to end first.
        """
        if self._open is not None:
            if self._look() == self._inodes:
                return self._open
            _log.warning("ledger.replaced", path=str(self.path))
            self.close()
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._turn():
            self._open = self._open_or_replace()
        self._inodes = self._look()
        return self._open

    def replace(self, reason: str) -> None:
        """Give the file up and start with the claims that have a copy.

        Nothing is done if another process has done it since the last `connection`.

        Raises:
            sqlite3.Error: A new file cannot be written; the old one stays.
            OSError: See there.
        """
        with self._turn():
            if self._open is not None and self._look()[:1] != self._inodes[:1]:
                return
            self._put_new(reason)
        self.close()

    def close(self) -> None:
        """Close the connection, if there is one.

        SQLite removes its log then. If a power cut brought the name back after the room was given
        to another file, SQLite would believe what the log has before the first foreign byte: an
        old state. So the removal is waited for.
        """
        if self._open is not None:
            with suppress(sqlite3.Error):
                self._open.close()
            with suppress(OSError):
                sync_directory(self.path.parent)
        self._open = None

    def _open_or_replace(self) -> sqlite3.Connection:
        if not self.path.exists():
            self._put_new("it is not there")
        try:
            return self._connect()
        except (DamageError, sqlite3.DatabaseError) as error:
            if not is_damage(error):
                raise
            if isinstance(error, NewerError) and not self._alone():
                raise RetryError(
                    f"ledger {self.path}: {error}, and the process that wrote it still runs; it "
                    "has to end first (such a downgrade needs maxUnavailable, not maxSurge)"
                ) from error
            self._put_new(str(error))
        return self._connect()

    def _connect(self) -> sqlite3.Connection:
        self._file = self.path.resolve()
        connection = _open_connection(self._file)
        try:
            self._upgrade(connection)
            self._prove(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _upgrade(self, connection: sqlite3.Connection, *, new: bool = False) -> None:
        with transaction(connection):
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            major, minor = divmod(version, _MINORS)
            if major != MAJOR:
                kind = NewerError if major > MAJOR else DamageError
                raise kind(f"its major version is {major}, this program knows {MAJOR}")
            if not version and not new:
                raise DamageError("it is empty")
            if minor >= len(self._steps):
                return
            for step in self._steps[minor:]:
                for statement in _split(step):
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {_MINORS * MAJOR + len(self._steps)}")
        if minor:
            _log.info("ledger.upgraded", path=str(self.path), old=minor, new=len(self._steps))

    def _prove(self, connection: sqlite3.Connection) -> None:
        """Read everything once: what is broken is to be found now, not in a Prepare."""
        (health,) = connection.execute("PRAGMA quick_check").fetchone()
        if health != "ok":
            raise DamageError(f"quick_check says {health}")
        for table, needed in _COLUMNS.items():
            # Positional names of pragma_table_info are constants.
            there = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
            if missing := needed - there:
                raise DamageError(f"table {table} lacks {', '.join(sorted(missing))}")
        for uid, raw in connection.execute("SELECT uid, record FROM claims"):
            self._check(uid, raw)

    def _put_new(self, reason: str) -> None:
        """Put a new, filled file in the place of whatever is there."""
        now = time.time_ns()
        fresh = self.path.with_name(f"{self.path.stem}-{now}{self.path.suffix}")
        try:
            with closing(_open_connection(fresh)) as connection:
                self._upgrade(connection, new=True)
                with transaction(connection):
                    restored = self._fill(connection)
            aside = self._find_old(now)
            link = self.path.with_name(f".{fresh.name}.tmp")
            link.symlink_to(fresh.name)
            link.rename(self.path)
            sync_directory(self.path.parent)
        except BaseException:
            _remove(fresh)
            raise
        self.restored += restored
        if aside is not None:
            _log.error("ledger.moved_aside", kept=str(aside), reason=reason, restored=restored)
        elif restored:
            _log.error("ledger.lost", path=str(self.path), restored=restored)
        self._forget_old(fresh)

    def _find_old(self, now: int) -> Path | None:
        """Return where the file stays that is about to be replaced."""
        if not self.path.exists():
            return None
        if self.path.is_symlink():
            return self.path.resolve()
        # Not one of ours, or of a version that had no link.
        aside = self.path.with_name(f"{self.path.stem}-{now - 1}{self.path.suffix}")
        for suffix in reversed(_SUFFIXES):
            with suppress(FileNotFoundError):
                _with(self.path, suffix).rename(_with(aside, suffix))
        return aside

    def _forget_old(self, current: Path) -> None:
        """Keep the last few that were replaced: a disk that is full stays full otherwise."""
        pattern = f"{self.path.stem}-*{self.path.suffix}"
        old = [path for path in sorted(self.path.parent.glob(pattern)) if path != current]
        for path in old[:-_KEPT_ASIDE]:
            _remove(path)

    def _look(self) -> tuple[tuple[int, int] | None, ...]:
        """Return what tells this file and its log from others of the same names."""
        return _identify(str(self.path)), _identify(f"{self._file}-wal")

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Let one process at a time open, upgrade or replace the file."""
        path = self.path.with_name(f"{self.path.name}.lock")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


@contextmanager
def transaction(connection: sqlite3.Connection, *, durable: bool = True) -> Iterator[None]:
    """Make the block's changes together or not at all; waits for other writers a few seconds.

    Args:
        connection: As the file opened it.
        durable: Whether they survive a power cut at once; else with the next change that does.
            A log is believed up to where it is whole, so no change is there without those before
            (https://www.sqlite.org/pragma.html#pragma_synchronous, NORMAL with a WAL).
    """
    connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        with suppress(sqlite3.Error):  # SQLite may have rolled back by itself
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def is_damage(error: Exception) -> bool:
    """Whether waiting cannot help: the file itself is no usable ledger."""
    if isinstance(error, DamageError):
        return True
    code = getattr(error, "sqlite_errorcode", 0) or 0
    return code & 0xFF in _DAMAGE or str(error).startswith("no such ")


def _open_connection(path: Path) -> sqlite3.Connection:
    # isolation_level None: transactions begin where we say so.
    connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None)
    try:
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
        _set_up(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _set_up(connection: sqlite3.Connection) -> None:
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise sqlite3.OperationalError(f"journal mode is {mode}; is it on a local disk?")
    connection.execute("PRAGMA foreign_keys = ON")


def _with(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _remove(path: Path) -> None:
    for suffix in _SUFFIXES:
        with suppress(OSError):
            _with(path, suffix).unlink(missing_ok=True)


def _split(script: str) -> Iterable[str]:
    """Return the statements of a script, which `executescript` would commit one by one."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _identify(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - before each use of the file
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
