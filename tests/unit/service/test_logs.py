"""Log lines are JSON when nobody looks at a terminal."""

import asyncio
import io
import subprocess
import sys

import msgspec

from hami_dra.service.logs import LineBatch

PROGRAM = """
import structlog
from hami_dra.service.logs import configure_logs
configure_logs("info")
log = structlog.get_logger("x")
log.debug("hidden")
log.info("claim.prepared", claim="n/c", milliseconds=3, odd={1, 2}.__class__)
try:
    raise ValueError("why")
except ValueError:
    log.exception("task.failed")
"""


def test_lines_are_json_with_level_time_and_traceback() -> None:
    finished = subprocess.run(  # noqa: S603 - our own program text
        [sys.executable, "-c", PROGRAM], check=True, capture_output=True, timeout=30
    )

    lines = [msgspec.json.decode(line) for line in finished.stderr.splitlines()]

    assert [line["event"] for line in lines] == ["claim.prepared", "task.failed"]
    assert lines[0]["level"] == "info"
    assert lines[0]["timestamp"].endswith("Z")
    assert lines[0]["odd"] == "<class 'set'>"
    assert "ValueError: why" in lines[1]["exception"]


BATCHED = """
import asyncio, structlog
from hami_dra.service.logs import configure_logs
configure_logs("info", batched=True)
log = structlog.get_logger("x")
async def work():
    log.info("one")
    await asyncio.sleep(0)
    log.info("two")
log.info("zero")
asyncio.run(work())
log.info("three")
raise SystemExit(3)
"""


def test_batched_lines_keep_their_order_and_survive_the_end_of_the_loop() -> None:
    finished = subprocess.run(  # noqa: S603 - our own program text
        [sys.executable, "-c", BATCHED], check=False, capture_output=True, timeout=30
    )

    events = [msgspec.json.decode(line)["event"] for line in finished.stderr.splitlines()]

    assert finished.returncode == 3
    assert events == ["zero", "one", "two", "three"]


class _Target(io.BytesIO):
    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []

    def write(self, data: object) -> int:
        assert isinstance(data, bytes)
        self.writes.append(data)
        return len(data)


async def test_the_lines_of_one_turn_of_the_loop_are_one_write() -> None:
    target = _Target()
    batch = LineBatch(target)
    for line in (b"a\n", b"b\n"):
        batch.write(line)
        batch.flush()
    assert target.writes == []
    await asyncio.sleep(0)
    assert target.writes == [b"a\nb\n"]
    batch.write(b"c\n")
    batch.flush()
    batch.drain()
    await asyncio.sleep(0)
    assert target.writes == [b"a\nb\n", b"c\n"]


def test_without_a_loop_a_line_is_written_at_once() -> None:
    target = _Target()
    batch = LineBatch(target)
    batch.write(b"a\n")
    batch.flush()
    assert target.writes == [b"a\n"]
