"""/healthz, /readyz and /metrics for every process.

The three answers are given without a web framework: its server costs each process 2 MiB, and here
it would serve three paths to a prober and a scraper (docs/decisions/0034-memory-of-the-node.md).
A connection has one request, whose head comes whole within a deadline; its body is not read.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from email.utils import formatdate
from http import HTTPStatus
from typing import Final, cast
from urllib.parse import urlsplit

import structlog

_log = structlog.get_logger(__name__)

_HEAD_BYTES: Final = 8 << 10
"""Of a request: its first line and its headers."""
_CONNECTION_SECONDS: Final = 10.0
"""From the first byte to the last; whoever scrapes or probes waits no longer either."""
_MOST_CONNECTIONS: Final = 64
_PLAIN: Final = "text/plain; charset=utf-8"
_METRICS: Final = "text/plain; version=0.0.4; charset=utf-8"
_ALLOWED: Final = ("GET", "HEAD")

Answer = tuple[HTTPStatus, str, bytes]
"""Status, Content-Type and body."""
Endpoint = Callable[[], Answer]


class Readiness:
    """Named conditions that must all hold before the process is of use.

    A condition carries its reason, so that /readyz tells a person what is missing.
    """

    def __init__(self, *names: str) -> None:
        self._reasons: dict[str, str | None] = dict.fromkeys(names, "not yet")

    def set(self, name: str, reason: str | None) -> None:
        """Set one condition: ``None`` holds, a text says why it does not."""
        self._reasons[name] = reason

    @property
    def ready(self) -> bool:
        """Whether every condition holds."""
        return all(reason is None for reason in self._reasons.values())

    def report(self) -> str:
        """Return one line per condition."""
        return "".join(
            f"{name}: {'ok' if reason is None else reason}\n"
            for name, reason in sorted(self._reasons.items())
        )


@asynccontextmanager
async def serve_health(
    host: str, port: int, readiness: Readiness, render_metrics: Callable[[], bytes]
) -> AsyncIterator[int]:
    """Serve the endpoints over plain HTTP and yield the bound port.

    Args:
        host: Address to listen on.
        port: 0 for any free one.
        readiness: What /readyz tells.
        render_metrics: Returns what /metrics tells, in Prometheus' text format.

    Raises:
        OSError: The address cannot be bound.
    """

    def healthz() -> Answer:
        return HTTPStatus.OK, _PLAIN, b"ok\n"

    def readyz() -> Answer:
        status = HTTPStatus.OK if readiness.ready else HTTPStatus.SERVICE_UNAVAILABLE
        return status, _PLAIN, readiness.report().encode()

    def metrics() -> Answer:
        return HTTPStatus.OK, _METRICS, render_metrics()

    endpoints = {"/healthz": healthz, "/readyz": readyz, "/metrics": metrics}
    connections: dict[_Connection, None] = {}
    server = await asyncio.get_running_loop().create_server(
        lambda: _Connection(endpoints, connections), host, port
    )
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for connection in list(connections):
            connection.abort()
        await server.wait_closed()


class _Connection(asyncio.Protocol):
    """Answers one request, and closes when the client has read the answer.

    Args:
        endpoints: By path.
        connections: All that are open, the oldest first. Where there are too many, the oldest has
            to go, so that clients who send nothing do not keep the others out.
    """

    def __init__(
        self, endpoints: Mapping[str, Endpoint], connections: dict["_Connection", None]
    ) -> None:
        self._endpoints = endpoints
        self._connections = connections
        self._head = b""
        self._answered = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the deadline."""
        self._transport = cast("asyncio.Transport", transport)
        if len(self._connections) >= _MOST_CONNECTIONS:
            next(iter(self._connections)).abort()
        self._connections[self] = None
        self._deadline = asyncio.get_running_loop().call_later(_CONNECTION_SECONDS, self.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        del exc
        self._deadline.cancel()
        self._connections.pop(self, None)

    def abort(self) -> None:
        """Close at once."""
        self._connections.pop(self, None)  # its end is told later, and others may come before
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Answer when the head is there; what comes after it belongs to nothing."""
        if self._answered:
            return
        # Line ends before a request are no request (RFC 9112, 2.2).
        self._head = (self._head + data).lstrip(b"\r\n")
        head, end, _ = self._head.partition(b"\r\n\r\n")
        if len(head) > _HEAD_BYTES:
            self._answer("GET", _refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE))
        elif end:
            method, answer = _find_answer(self._endpoints, head)
            self._answer(method, answer)

    def _answer(self, method: str, answer: Answer) -> None:
        status, content_type, body = answer
        lines = [
            f"HTTP/1.1 {status.value} {status.phrase}",
            f"Date: {formatdate(usegmt=True)}",
            f"Content-Type: {content_type}",
            f"Content-Length: {len(body)}",
            "Connection: close",
        ]
        if status is HTTPStatus.METHOD_NOT_ALLOWED:
            lines.append(f"Allow: {', '.join(_ALLOWED)}")
        head = "\r\n".join([*lines, "", ""]).encode()
        self._answered, self._head = True, b""
        # Not closed here: what a client still sends would make the kernel throw the answer away.
        self._transport.write(head if method == "HEAD" else head + body)
        self._transport.write_eof()


def _find_answer(endpoints: Mapping[str, Endpoint], head: bytes) -> tuple[str, Answer]:
    """Return a request's method, and its answer."""
    try:
        line = head.partition(b"\r\n")[0].decode("ascii")
        method, target, version = line.split(" ")
        path = urlsplit(target).path  # a proxy's request names the host as well
    except ValueError:
        return "GET", _refuse(HTTPStatus.BAD_REQUEST)
    if not version.startswith("HTTP/1."):
        return "GET", _refuse(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
    endpoint = endpoints.get(path)
    if endpoint is None:
        return method, _refuse(HTTPStatus.NOT_FOUND)
    if method not in _ALLOWED:
        return method, _refuse(HTTPStatus.METHOD_NOT_ALLOWED)
    try:
        return method, endpoint()
    except Exception:  # noqa: BLE001 - the client hears of it, and the log says why
        _log.exception("health.failed", path=path)
        return method, _refuse(HTTPStatus.INTERNAL_SERVER_ERROR)


def _refuse(status: HTTPStatus) -> Answer:
    return status, _PLAIN, f"{status.value}: {status.phrase}\n".encode()
