"""Log lines are JSON when nobody looks at a terminal."""

import subprocess
import sys

import msgspec

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
