"""Files that survive a power cut, those of many jobs for little more than the price of one.

A job says where it has to wait for the disk, and jobs that come together wait there together: all
of their files are written before the first is waited for, and a directory that several of them
share is waited for once. Whatever else is cheaper for many at once, such as a commit, they leave
to somebody who does it for all of them.
"""

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeVar

from hami_dra.service.groups import Groups

_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
_FEW: Final = 2
"""Waited for in turn: another thread would have to be woken."""
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

Path = str | os.PathLike[str]
T = TypeVar("T")


class Writes:
    """What one job wants on the disk before it goes on. Blocking."""

    def __init__(self) -> None:
        self._files: list[tuple[int, str, str]] = []
        self._directories: dict[str, None] = {}

    def replace(self, path: Path, content: bytes, *, mode: int, shared: bool = False) -> None:
        """Replace a file so that, whatever happens, it has the old or the new content.

        The new content is there once the job goes on. The temporary file does not end in
        ``.json``, so a runtime never reads it; it is gone after an error.

        Args:
            path: The file.
            content: All of it.
            mode: Its permissions.
            shared: Whether another process may write it at the same time; else the temporary file
                has a fixed name, so that what a killed writer left is used up by the next.
        """
        path = os.fspath(path)
        directory, _, name = path.rpartition("/")
        token = f"{os.urandom(4).hex()}." if shared else ""
        temporary = f"{directory}/.{name}.{token}tmp"
        self._files.append((_write(temporary, content, mode), temporary, path))
        self._directories[directory] = None

    def sync(self, directory: Path) -> None:
        """Let what was made or removed in a directory survive a power cut."""
        self._directories[os.fspath(directory)] = None

    def discard(self) -> None:
        """Give up what is not on the disk yet. Idempotent."""
        self._directories.clear()
        while self._files:
            descriptor, temporary, _ = self._files.pop()
            os.close(descriptor)
            _forget(temporary)

    def take_files(self) -> list[tuple[int, str, str]]:
        """Return descriptor, temporary and final name of each file, and forget them."""
        files, self._files = self._files, []
        return files

    def take_directories(self) -> list[str]:
        """Return the directories that are still to be waited for, and forget them."""
        directories = list(self._directories)
        self._directories.clear()
        return directories


Job = Callable[[Writes], Generator[Any, None, T]]
"""Yields where what it wants on the disk has to be there.

What it yields, unless that is ``None``, is done then by `Together`.
"""

Together = Callable[[Sequence[Any]], Sequence[Exception | None]]
"""Does what jobs have yielded, for all of them at once; returns the error of each. Blocking."""


def refuse(wishes: Sequence[Any]) -> Sequence[Exception | None]:
    """Do nothing for jobs that only write files."""
    return [TypeError(f"nobody does {wish!r}") for wish in wishes]


class DurableWork:
    """Does jobs in a thread, those together that came while others were done.

    What goes wrong with one job is its caller's to know, and of no concern to the others.

    Args:
        executor: The one thread in which they are done.
        disk: See `Disk`.
        together: See `Together`; called in that thread.
    """

    def __init__(
        self, executor: Executor, disk: "Disk | None" = None, *, together: Together = refuse
    ) -> None:
        work = partial(do_together, disk=disk or Disk(), together=together)
        self._groups: Groups[Job[Any], Any] = Groups(work, executor)

    async def do(self, job: Job[T]) -> T:
        """Return what a job returns.

        Raises:
            Exception: What the job raised; where it yields, it is told of an error of the disk, or
                of what it wished for.
        """
        result: T = await self._groups.do(job)
        return result


class Disk:
    """Waits for files and directories. Blocking.

    Args:
        threads: Wait for many files at once: a disk is asked to empty its cache for each file, and
            does it once for all who ask at that time. Without, it is asked for one after the other.
        count: How many of them.
    """

    def __init__(self, threads: Executor | None = None, count: int = 0) -> None:
        self._threads = threads
        self._count = count

    def sync(self, descriptors: Sequence[int]) -> list[OSError | None]:
        """Wait until all are on the disk; return the error of each."""
        if self._threads is None or len(descriptors) <= _FEW:
            return _sync_in_turn(descriptors)
        parts = [descriptors[first :: self._count] for first in range(self._count)]
        waits = [self._threads.submit(_sync_in_turn, part) for part in parts if part]
        errors: list[OSError | None] = [None] * len(descriptors)
        for first, wait in enumerate(waits):
            errors[first :: self._count] = wait.result()
        return errors


def do_together(jobs: Sequence[Job[Any]], disk: Disk, together: Together = refuse) -> list[Any]:
    """Do jobs up to where each waits for the disk, wait for all of them, and so on. Blocking.

    Returns:
        What each returned, or the error that it raised.
    """
    outcomes: list[Any] = [None] * len(jobs)
    writes = [Writes() for _ in jobs]
    running = {number: job(writes[number]) for number, job in enumerate(jobs)}
    errors: dict[int, Exception] = {}
    try:
        while running:
            wishes: dict[int, Any] = {}
            for number, steps in list(running.items()):
                try:
                    if number in errors:
                        wishes[number] = steps.throw(errors.pop(number))
                    else:
                        wishes[number] = next(steps)
                except StopIteration as end:
                    outcomes[number] = end.value
                    del running[number]
                except Exception as error:  # noqa: BLE001 - it is the caller's, and of no other job
                    outcomes[number] = error
                    writes[number].discard()
                    del running[number]
            errors = {**make_durable({number: writes[number] for number in running}, disk)}
            errors |= _grant(
                {n: wish for n, wish in wishes.items() if wish is not None and n not in errors},
                together,
            )
    finally:
        for each in writes:
            each.discard()
    return outcomes


def _grant(wishes: Mapping[int, Any], together: Together) -> dict[int, Exception]:
    """Do what jobs have yielded; return the errors by job."""
    if not wishes:
        return {}
    errors = together(list(wishes.values()))
    found = zip(wishes, errors, strict=True)
    return {number: error for number, error in found if error is not None}


def make_durable(writes: Mapping[int, Writes], disk: Disk) -> dict[int, OSError]:
    """Wait for the disk: files, then their names and what else is in their directories. Blocking.

    Returns:
        The errors, by whose they are; of their files those that are not named yet are gone.
    """
    errors = _name_files(
        [(n, file) for n, each in writes.items() for file in each.take_files()], disk
    )
    wanted: dict[str, list[int]] = {}
    for number, each in writes.items():
        for directory in each.take_directories():
            if number not in errors:
                wanted.setdefault(directory, []).append(number)
    opened: list[tuple[int, list[int]]] = []
    try:
        for directory, numbers in wanted.items():
            try:
                opened.append((os.open(directory, _DIRECTORY), numbers))
            except OSError as error:
                errors |= dict.fromkeys(numbers, error)
        failures = disk.sync([descriptor for descriptor, _ in opened])
        for (_, numbers), failure in zip(opened, failures, strict=True):
            if failure is not None:
                errors |= dict.fromkeys(numbers, failure)
    finally:
        for descriptor, _ in opened:
            os.close(descriptor)
    return errors


def _name_files(
    files: Sequence[tuple[int, tuple[int, str, str]]], disk: Disk
) -> dict[int, OSError]:
    """Give files their names once the content of all is on the disk."""
    errors: dict[int, OSError] = {}
    named = 0
    try:
        failures = disk.sync([descriptor for _, (descriptor, _, _) in files])
        for (number, (_, temporary, path)), failure in zip(files, failures, strict=True):
            error = failure or errors.get(number) or _rename(temporary, path)
            if error is not None:
                errors[number] = error
                _forget(temporary)
            named += 1
    finally:
        for _, (descriptor, _, _) in files:
            os.close(descriptor)
        for _, (_, temporary, _) in files[named:]:
            _forget(temporary)
    return errors


def _rename(temporary: str, path: str) -> OSError | None:
    try:
        os.rename(temporary, path)  # noqa: PTH104 - at every Prepare
    except OSError as error:
        return error
    return None


def _forget(temporary: str) -> None:
    with suppress(OSError):
        os.unlink(temporary)  # noqa: PTH108 - at every Prepare


def _sync_in_turn(descriptors: Sequence[int]) -> list[OSError | None]:
    errors: list[OSError | None] = []
    for descriptor in descriptors:
        try:
            os.fsync(descriptor)
        except OSError as error:
            errors.append(error)
        else:
            errors.append(None)
    return errors


def write_durably(path: Path, content: bytes, *, mode: int, shared: bool = False) -> None:
    """Replace a file so that after a crash it holds the old or the new content, never half.

    See `Writes.replace`.
    """
    writes = Writes()
    writes.replace(path, content, mode=mode, shared=shared)
    for error in make_durable({0: writes}, Disk()).values():
        raise error


def write_whole(path: Path, content: bytes, *, mode: int) -> None:
    """Replace a file so that whoever reads it finds all of the old or the new content.

    A power cut may leave it empty: for what is written anew after one.
    """
    path = os.fspath(path)
    directory, _, name = path.rpartition("/")
    temporary = f"{directory}/.{name}.tmp"
    os.close(_write(temporary, content, mode))
    error = _rename(temporary, path)
    if error is not None:
        _forget(temporary)
        raise error


def sync_directory(directory: Path) -> None:
    """Make a rename or removal in a directory survive a power cut."""
    descriptor = os.open(directory, _DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(temporary: str, content: bytes, mode: int) -> int:
    """Write a file and return its descriptor; it is gone after an error."""
    descriptor = os.open(temporary, _NEW, mode)
    try:
        os.fchmod(descriptor, mode)  # whatever the umask says
        written = os.write(descriptor, content)
        while written < len(content):  # a disk that gets full takes a part first, then says so
            written += os.write(descriptor, content[written:])
    except BaseException:
        os.close(descriptor)
        _forget(temporary)
        raise
    return descriptor
