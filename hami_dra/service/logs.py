"""One structured line per thing that happened: JSON for machines, columns for a terminal."""

import asyncio
import atexit
import logging
import sys
import threading
from typing import Any, BinaryIO, Final

import msgspec
import structlog

_LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


class LineBatch:
    """Writes the lines of one turn of the event loop at once.

    A write for each line costs a busy server a tenth of its time. Where no loop runs, and at exit,
    lines are written at once. Only a process that is killed can lose some: those of its last turn.
    """

    def __init__(self, target: BinaryIO) -> None:
        self._target = target
        self._lines: list[bytes] = []
        self._lock = threading.Lock()
        self._scheduled = False
        atexit.register(self.drain)

    def write(self, line: bytes) -> int:
        """Keep a line until the next `flush` comes true."""
        self._lines.append(line)
        return len(line)

    def flush(self) -> None:
        """Write soon: when the event loop has done what is ready now."""
        if self._scheduled:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.drain()
            return
        self._scheduled = True
        loop.call_soon(self.drain)

    def drain(self) -> None:
        """Write now. Safe in any thread; idempotent."""
        with self._lock:
            self._scheduled = False
            lines, self._lines = self._lines, []
            if lines:
                self._target.write(b"".join(lines))
                self._target.flush()


def configure_logs(level: str = "info", *, batched: bool = False) -> None:
    """Set the process's log form and level. Call once, before the first line.

    Args:
        level: The least that is written.
        batched: Write the lines of one turn of the event loop at once, see `LineBatch`.

    Raises:
        KeyError: An unknown level.
    """
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    wrapper = structlog.make_filtering_bound_logger(_LEVELS[level])
    if sys.stderr.isatty():
        structlog.configure(
            processors=[*shared, structlog.dev.ConsoleRenderer()],
            wrapper_class=wrapper,
            logger_factory=structlog.PrintLoggerFactory(sys.stderr),
            cache_logger_on_first_use=True,
        )
        return
    target = LineBatch(sys.stderr.buffer) if batched else sys.stderr.buffer
    structlog.configure(
        processors=[
            *shared,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(serializer=_to_json),
        ],
        wrapper_class=wrapper,
        logger_factory=structlog.BytesLoggerFactory(target),  # type: ignore[arg-type]
        cache_logger_on_first_use=True,
    )


def _to_json(event: Any, **_: Any) -> bytes:
    return msgspec.json.encode(event, enc_hook=repr)
