"""Many requests to the API server at once, each answered with its status and its warnings."""

from __future__ import annotations

import http.client
import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.cluster.errors import CommandError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tests.cluster.api import Api

_CALLS_PER_CONNECTION = 4
_WARNING = re.compile(r'299 - "((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class Call:
    """A request: its method, where it goes, and its body."""

    method: str
    path: str
    body: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: a refusal is an answer like any other.

    Attributes:
        status: HTTP status.
        body: The object, or the Status with a refusal's message.
        warnings: What kubectl would show.
    """

    status: int
    body: dict[str, Any]
    warnings: tuple[str, ...]

    @property
    def done(self) -> bool:
        """Whether the server did it."""
        return self.status < http.client.BAD_REQUEST

    @property
    def message(self) -> str:
        """Why the server did not do it."""
        return "" if self.done else str(self.body.get("message", self.body))


def send_all(api: Api, calls: Sequence[Call], clients: int = 8) -> list[Answer]:
    """Send requests over at most ``clients`` kept connections; return the answers in their order.

    Few requests get fewer connections: opening one costs as much as several requests.

    Raises:
        CommandError: The server cannot be reached.
    """
    answers: list[Answer | None] = [None] * len(calls)
    clients = max(1, min(clients, len(calls) // _CALLS_PER_CONNECTION))

    def work(first: int) -> None:
        connection = api.connect()
        try:
            for index in range(first, len(calls), clients):
                answers[index] = _send(api, connection, calls[index])
        finally:
            connection.close()

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(work, range(clients)))
    return [answer for answer in answers if answer is not None]


def require_done(calls: Iterable[Call], answers: Iterable[Answer]) -> None:
    """Raise for the first request that the server refused.

    Raises:
        CommandError: With what was asked and the reason.
    """
    for call, answer in zip(calls, answers, strict=True):
        if not answer.done:
            raise CommandError(f"{call.method} {call.path}: {answer.status} {answer.message}")


def _send(api: Api, connection: http.client.HTTPConnection, call: Call) -> Answer:
    body = None if call.body is None else json.dumps(call.body)
    try:
        connection.request(call.method, call.path, body, api.headers(call.method))
        answer = connection.getresponse()
        content = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise CommandError(f"{call.method} {call.path}: {error!r}") from error
    warnings = _WARNING.findall(", ".join(answer.headers.get_all("Warning") or ()))
    unescaped = tuple(re.sub(r"\\(.)", r"\1", text) for text in warnings)
    return Answer(answer.status, json.loads(content or b"{}"), unescaped)
