"""The client's side of the supervisor's control socket."""

from __future__ import annotations

import json
import socket
import struct
from typing import TYPE_CHECKING, Any

from tests.cluster.errors import ClusterError
from tests.cluster.wire import CONTROL_SOCKET

if TYPE_CHECKING:
    from pathlib import Path

GRACE_SECONDS = 10.0


def request(directory: Path, op: str, timeout_seconds: float = 30.0, **arguments: Any) -> Any:
    """Ask a cluster's supervisor for something and return its answer.

    Raises:
        ClusterError: it refused, or there is none.
    """
    line = json.dumps({"op": op, **arguments}).encode() + b"\n"
    with _connected(directory, timeout_seconds + GRACE_SECONDS) as channel:
        try:
            channel.sendall(line)
            with channel.makefile("rb") as stream:
                answer = stream.readline()
        except OSError as error:
            raise ClusterError(
                f"the cluster in {directory} does not answer {op}: {error}"
            ) from None
    if not answer:
        raise ClusterError(f"the cluster in {directory} ended during {op}")
    decoded = json.loads(answer)
    if not decoded["ok"]:
        raise ClusterError(decoded["error"])
    return decoded["result"]


def supervisor_pid(directory: Path) -> int:
    """Return the supervisor's pid as this process's PID namespace has it."""
    with _connected(directory, GRACE_SECONDS) as channel:
        raw = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid: int = struct.unpack("3i", raw)[0]
    return pid


def _connected(directory: Path, timeout_seconds: float) -> socket.socket:
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    channel.settimeout(timeout_seconds)
    try:
        channel.connect(str(directory / CONTROL_SOCKET))
    except OSError as error:
        channel.close()
        raise ClusterError(f"no cluster runs in {directory} ({error.strerror})") from None
    return channel
