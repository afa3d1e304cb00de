"""The instances of one driver on one node, and which of them leads.

During a rolling update two run at a time. Each has a file in one directory and holds the file's
lock (flock(2)), which the kernel drops however the process ends: a file without its lock is of a
dead instance. The one that leads is the newest that the kubelet has registered, or the newest
while none is; all instances see the same files, so at most one leads, but for the moment in which
an instance has not looked yet. Calls are served by all.
"""

import asyncio
import fcntl
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import structlog

from hami_dra.contract.errors import FatalError, RetryError
from hami_dra.kubeletplugin.places import PluginSockets, list_sockets
from hami_dra.service.directorywatch import DirectoryWatch

_log = structlog.get_logger(__name__)

_NAME: Final = re.compile(r"(\d+)-([0-9A-Za-z-]+)")
_REGISTERED: Final = ".registered"
_PROBE_SECONDS: Final = 1.0
_LOOK_SECONDS: Final = 0.25
"""While there are others: a lock that the kernel drops wakes nobody who does not wait in a thread
of its own."""
_ALONE_LOOK_SECONDS: Final = 10.0
"""While there is nobody else, the kernel tells when somebody comes; should it not, this does."""

_YOUNG_NS: Final = 10**9
_Stamp = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Peer:
    """A living instance.

    Attributes:
        number: Higher for one that started later.
        name: UID of its pod.
        registered: Whether the kubelet has registered it.
    """

    number: int
    name: str
    registered: bool


class Instance:
    """This process among the instances of a driver; made by `join`. Blocking, and thread-safe.

    Attributes:
        number: Higher than that of every instance that joined before.
        name: UID of the pod, "" for one that never has a second beside it.
    """

    def __init__(self, directory: Path, number: int, name: str, descriptor: int) -> None:
        self.number = number
        self.name = name
        self._directory = directory
        self._descriptor = descriptor
        self._alone: _Stamp | None = None

    @classmethod
    @contextmanager
    def join(cls, state_dir: Path, *, pod_uid: str = "") -> Iterator[Self]:
        """Be an instance for the length of the block.

        Args:
            state_dir: What all instances share; made if it is not there.
            pod_uid: "" for an instance that must be alone on its state directory.

        Raises:
            FatalError: Another instance is there, and one of the two must be alone.
            RetryError: The directory cannot be written at the moment.
        """
        try:
            alone = _hold_directory(state_dir, exclusive=not pod_uid)
        except BlockingIOError as error:
            raise FatalError(
                f"another node process uses {state_dir}; only one instance may run on a node, "
                "unless all of them are told their --pod-uid"
            ) from error
        except OSError as error:
            raise explain_directory(state_dir, error) from error
        try:
            instance = cls._enter(state_dir / "instances", pod_uid)
        except OSError as error:
            os.close(alone)
            raise explain_directory(state_dir, error) from error
        try:
            yield instance
        finally:
            instance.leave()
            os.close(alone)

    @classmethod
    def _enter(cls, directory: Path, name: str) -> Self:
        directory.mkdir(mode=0o700, exist_ok=True)
        with _turn(directory):
            known = _list(directory)
            number = 1 + max((found for found, _, _ in known), default=0)
            for path in (*(path for _, _, path in known), *directory.glob(".*-*")):
                _bury(path)
            path = directory / f"{number}-{name or 'only'}"
            hidden = directory / f".{path.name}"
            descriptor = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                hidden.rename(path)
            except BaseException:
                os.close(descriptor)
                raise
        return cls(directory, number, name, descriptor)

    def set_registered(self, *, registered: bool) -> None:
        """Tell the others whether the kubelet has registered this instance. Idempotent."""
        mark = self._mark()
        with suppress(OSError):  # without its mark it does not lead while another does
            if registered:
                mark.touch(mode=0o600)
            else:
                mark.unlink(missing_ok=True)

    def peers(self) -> list[Peer]:
        """Return the other living instances, oldest first."""
        return [
            Peer(number, name, _mark_of(path).exists())
            for number, name, path in sorted(_list(self._directory))
            if number != self.number and _is_alive(path)
        ]

    def leads(self) -> bool:
        """Whether this instance speaks for the driver now."""
        if not self.name:
            return True
        now, stamp = time.time_ns(), _stamp(self._directory)
        peers = self.peers()
        # A directory that changes again within a tick of the kernel's clock has the same date.
        old = stamp is not None and now - stamp[1] >= _YOUNG_NS
        self._alone = stamp if old and not peers else None
        mine = (self._mark().exists(), self.number)
        return all((peer.registered, peer.number) < mine for peer in peers)

    @property
    def is_alone(self) -> bool:
        """Whether the last look at the lead found nobody else, and no change that may hide one."""
        return not self.name or self._alone is not None

    def listen(self, watch: DirectoryWatch) -> bool:
        """Have a watch tell of the next instance that comes or goes; return whether it will."""
        return watch.arm((self._directory,))

    async def check_lead(self) -> bool:
        """Do as `leads`, in a thread.

        Whoever comes is seen in the directory: while it is as it was when nobody else was there,
        this is one question to the kernel.
        """
        if not self.name or (self._alone is not None and self._alone == _stamp(self._directory)):
            return True
        return await asyncio.to_thread(self.leads)

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Tell whether no other instance lives; none can join while the block runs.

        Raises:
            OSError: The directory cannot be used at the moment.
        """
        with _turn(self._directory):
            yield not self.peers()

    def _mark(self) -> Path:
        return _mark_of(self._directory / f"{self.number}-{self.name or 'only'}")

    def leave(self) -> None:
        """Make room for others; `join` does it."""
        with suppress(OSError):
            self._mark().unlink(missing_ok=True)
            (self._directory / f"{self.number}-{self.name or 'only'}").unlink(missing_ok=True)
        os.close(self._descriptor)


async def follow_lead(instance: Instance, on_change: Callable[[bool], None]) -> None:
    """Tell whether an instance leads, at first and as often as that changes, until cancelled."""
    told: bool | None = None
    changed = asyncio.Event()
    with DirectoryWatch(changed.set) as watch:
        while True:
            changed.clear()
            listens = instance.listen(watch)
            leads = await instance.check_lead()
            if leads != told:
                told = leads
                _log.info("instance.leads" if leads else "instance.follows", number=instance.number)
                on_change(leads)
            if listens and instance.is_alone:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_ALONE_LOOK_SECONDS):
                        await changed.wait()
            else:
                await asyncio.sleep(_LOOK_SECONDS)


def sweep_sockets(kubelet_dir: Path, driver: str, own: PluginSockets) -> list[Path]:
    """Remove the sockets that dead instances left; return them. Blocking.

    The kubelet would try a dead registration socket again for ever. To be called while alone: a
    socket that was made a moment ago does not answer yet.

    Args:
        kubelet_dir: The kubelet's root directory.
        driver: Driver name.
        own: What this instance uses.
    """
    removed = []
    for path in list_sockets(kubelet_dir, driver):
        if path in {own.service, own.registration} or not _is_refused(path):
            continue
        with suppress(OSError):
            path.unlink()
            removed.append(path)
    if removed:
        _log.info("sockets.swept", paths=[str(path) for path in removed])
    return removed


def explain_directory(directory: Path, error: OSError) -> RetryError:
    """Return what to say when the state directory cannot be written."""
    return RetryError(
        f"--state-dir {directory} is not usable: {error.strerror or error}; it must be a writable "
        "directory on a local disk with room"
    )


def _is_refused(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_SECONDS)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
        return False


def _hold_directory(state_dir: Path, *, exclusive: bool) -> int:
    """Return a descriptor that keeps instances away that do not expect each other."""
    state_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    descriptor = os.open(state_dir / "lock", flags, 0o600)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def _turn(directory: Path) -> Iterator[None]:
    """Let instances join one after the other; each takes milliseconds."""
    descriptor = os.open(directory / ".turn", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _list(directory: Path) -> list[tuple[int, str, Path]]:
    found = []
    with suppress(OSError):
        for path in directory.iterdir():
            match = _NAME.fullmatch(path.name)
            if match:
                found.append((int(match[1]), match[2], path))
    return found


def _stamp(directory: Path) -> _Stamp | None:
    """Return what changes when a name in a directory comes or goes."""
    try:
        found = os.stat(directory)  # noqa: PTH116 - several times a second
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _mark_of(path: Path) -> Path:
    return path.with_name(path.name + _REGISTERED)


def _is_alive(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)


def _bury(path: Path) -> None:
    if not _is_alive(path):
        _mark_of(path).unlink(missing_ok=True)
        path.unlink(missing_ok=True)
