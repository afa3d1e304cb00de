"""Every point at which a process can die between two of its effects, found while it runs.

Nobody keeps a list: Python's own audit events (PEP 578) tell of each file that is opened for
writing, renamed or removed and each directory that is made; calls that have no event (os.pwrite
and the like), SQL that writes, calls to the API server and functions of NVML that change a card
are wrapped. A point is reported *before* its effect, and whoever listens may raise, or kill the
process.
"""

import functools
import inspect
import os
import re
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import pynvml

from hami_dra.kube.objects import Api

_WRITE_FLAGS: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_PATH_EVENTS: Final = {
    "os.rename": "rename",
    "os.remove": "unlink",
    "os.mkdir": "mkdir",
    "os.rmdir": "rmdir",
    "os.chmod": "chmod",
    "os.chown": "chown",
    "os.link": "link",
    "os.symlink": "symlink",
    "os.truncate": "truncate",
    "os.utime": "utime",
    "os.setxattr": "setxattr",
}
_DESCRIPTOR_CALLS: Final = ("write", "pwrite", "writev", "pwritev", "ftruncate", "fsync")
_READING: Final = ("SELECT", "PRAGMA", "EXPLAIN")
_CHANGING: Final = re.compile(r"nvml(?!(?:System)?EventSet)\w*(Create|Destroy|Set|Reset|Clear)")
"""Functions that change a card; sets of events are the process's own."""
_TARGET: Final = {"os.rename": 1, "os.link": 1, "os.symlink": 1}
_AT: Final = {"os.remove": 1, "os.mkdir": 2, "os.rmdir": 1, "os.rename": 3, "os.chmod": 2}


@dataclass(frozen=True, slots=True)
class Point:
    """What is about to happen.

    Attributes:
        verb: Such as "rename", "sql", "api" or "nvml".
        target: The path that changes, the statement, the method and kind, or the function.
    """

    verb: str
    target: str


Listener = Callable[[Point], None]
_listeners: list[tuple[tuple[str, ...], Listener]] = []
_hooked: list[bool] = []


@contextmanager
def watch_points(listener: Listener, *roots: Path) -> Iterator[None]:
    """Report the points of this process for the length of the block.

    Args:
        listener: Called in the thread that is about to act; what it raises, the act raises.
        roots: Only files below these are of interest.
    """
    if not _hooked:
        _hooked.append(True)
        sys.addaudithook(_audit)  # for ever: an audit hook cannot be taken away
    entry = (tuple(os.path.realpath(root) for root in roots), listener)
    with ExitStack() as stack:
        for name in _DESCRIPTOR_CALLS:
            stack.enter_context(patch.object(os, name, _wrap_descriptor(getattr(os, name))))
        stack.enter_context(patch.object(sqlite3, "connect", _connect))
        for name, method in inspect.getmembers(Api, inspect.iscoroutinefunction):
            if not name.startswith("_"):
                stack.enter_context(patch.object(Api, name, _wrap_api(name, method)))
        for name, function in inspect.getmembers(pynvml, inspect.isfunction):
            if _CHANGING.match(name):
                stack.enter_context(patch.object(pynvml, name, _wrap_nvml(name, function)))
        _listeners.append(entry)
        stack.callback(_listeners.remove, entry)
        yield


def report(point: Point) -> None:
    """Tell whoever listens what a stand-in for something outside is about to do."""
    for _, listener in _listeners:
        listener(point)


def _report_path(verb: str, path: str) -> None:
    for roots, listener in _listeners:
        if any(path == root or path.startswith(f"{root}/") for root in roots):
            listener(Point(verb, path))


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _listeners:
        return
    if event == "open":
        path, _, flags = arguments
        # A descriptor stands for a file whose opening was reported already.
        if isinstance(flags, int) and flags & _WRITE_FLAGS and not isinstance(path, int):
            _report_path("open", _resolve(path, -1))
    elif event in _PATH_EVENTS:
        path = arguments[_TARGET.get(event, 0)]
        index = _AT.get(event)
        at = arguments[index] if index is not None and index < len(arguments) else -1
        _report_path(_PATH_EVENTS[event], _resolve(path, at))


def _resolve(path: Any, at: Any) -> str:
    """Return the real absolute path of what an event names; its last part may be a link."""
    if isinstance(path, int):
        return os.path.realpath(f"/proc/self/fd/{path}")
    text = os.fsdecode(path)
    directory, name = os.path.split(text)
    if (at or -1) >= 0 and not text.startswith("/"):
        directory = f"/proc/self/fd/{at}/{directory}"
    return f"{os.path.realpath(directory or '.')}/{name}"


def _wrap_descriptor(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def wrapped(descriptor: int, *arguments: Any) -> Any:
        _report_path(call.__name__, _resolve(descriptor, -1))
        return call(descriptor, *arguments)

    return wrapped


def _wrap_api(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    async def wrapped(self: Api, resource: Any, *arguments: Any, **options: Any) -> Any:
        report(Point("api", f"{name} {resource.plural}"))
        return await method(self, resource, *arguments, **options)

    return wrapped


def _wrap_nvml(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapped(*arguments: Any) -> Any:
        report(Point("nvml", name))
        return function(*arguments)

    return wrapped


class _Connection(sqlite3.Connection):
    """Reports statements that write; those that come another way are an error."""

    def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
        """Run a statement."""
        self._announce(sql)
        return super().execute(sql, *arguments)

    def executemany(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
        """Run a statement for each row."""
        self._announce(sql)
        return super().executemany(sql, *arguments)

    def executescript(self, *_: Any) -> sqlite3.Cursor:
        """Refuse: it would write several times with nothing in between."""
        raise NotImplementedError("a script has no points between its statements")

    def commit(self) -> None:
        """Refuse: it would write unseen."""
        raise NotImplementedError('use execute("COMMIT")')

    def _announce(self, sql: str) -> None:
        if not sql.lstrip().upper().startswith(_READING):
            report(Point("sql", " ".join(sql.split())))


_real_connect: Final = sqlite3.connect


def _connect(*arguments: Any, **options: Any) -> sqlite3.Connection:
    return _real_connect(*arguments, **options, factory=_Connection)
