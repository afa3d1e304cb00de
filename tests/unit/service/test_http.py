"""Health endpoints tell what is missing, to good clients and beside bad ones."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import aiohttp
import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest

from hami_dra.service import http
from hami_dra.service.http import Readiness, serve_health


@asynccontextmanager
async def serve(host: str = "127.0.0.1") -> AsyncIterator[int]:
    async with asyncio.timeout(20), serve_health(host, 0, Readiness(), lambda: b"a 1\n") as port:
        yield port


async def ask(port: int, *parts: bytes) -> bytes:
    """Return what a client is answered that sends these bytes and then waits."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        return await reader.read()
    finally:
        writer.close()


async def test_readyz_names_what_is_missing_and_metrics_are_served() -> None:
    readiness = Readiness("nvml", "slices")
    readiness.set("slices", None)
    registry = CollectorRegistry()
    Counter("prepares", "Prepares.", registry=registry).inc()

    async with (
        serve_health("127.0.0.1", 0, readiness, lambda: generate_latest(registry)) as port,
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client,
    ):
        async with client.get("/readyz") as answer:
            assert answer.status == 503
            assert await answer.text() == "nvml: not yet\nslices: ok\n"
        readiness.set("nvml", None)
        async with client.get("/readyz?verbose=1") as answer:
            assert answer.status == 200
            assert answer.content_type == "text/plain"
        async with client.get("/metrics") as answer:
            assert "prepares_total 1.0" in await answer.text()
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        async with client.get("/healthz") as answer:
            assert answer.status == 200


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n", b"200 OK"),
        (b"GET /healthz HTTP/1.0\r\n\r\n", b"200 OK"),
        (b"\r\n\r\nGET /healthz HTTP/1.1\r\n\r\n", b"200 OK"),
        (b"GET http://node:8080/healthz HTTP/1.1\r\n\r\n", b"200 OK"),
        (b"GET /healthz HTTP/1.1\r\n\r\nGET /healthz HTTP/1.1\r\n\r\n", b"200 OK"),
        (b"GET /healthz/ HTTP/1.1\r\n\r\n", b"404 Not Found"),
        (b"GET / HTTP/1.1\r\n\r\n", b"404 Not Found"),
        (b"GET * HTTP/1.1\r\n\r\n", b"404 Not Found"),
        (b"POST /nothing HTTP/1.1\r\n\r\n", b"404 Not Found"),
        (b"POST /healthz HTTP/1.1\r\n\r\n", b"405 Method Not Allowed"),
        (b"get /healthz HTTP/1.1\r\n\r\n", b"405 Method Not Allowed"),
        (b"GET /healthz\r\n\r\n", b"400 Bad Request"),
        (b"GET  /healthz HTTP/1.1\r\n\r\n", b"400 Bad Request"),
        (b"GET http://[/healthz HTTP/1.1\r\n\r\n", b"400 Bad Request"),
        (b"GET /\xff HTTP/1.1\r\n\r\n", b"400 Bad Request"),
        (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b"400 Bad Request"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"505 HTTP Version Not Supported"),
        (b"GET /healthz HTTP/1.1\r\nA: " + b"a" * 9000 + b"\r\n\r\n", b"431 "),
        (b"a" * 9000, b"431 "),
    ],
)
async def test_a_request_is_answered_once(request_: bytes, status: bytes) -> None:
    async with serve() as port:
        answer = await ask(port, request_)

    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 " + status)
    assert f"Content-Length: {len(body)}".encode() in head
    assert b"\r\nConnection: close" in head
    assert answer.count(b"HTTP/1.1") == 1


async def test_head_is_the_head_alone() -> None:
    async with serve() as port:
        whole = await ask(port, b"GET /metrics HTTP/1.1\r\n\r\n")
        head = await ask(port, b"HEAD /metrics HTTP/1.1\r\n\r\n")

    assert whole.endswith(b"\r\n\r\na 1\n")
    assert head.endswith(b"\r\n\r\n")
    assert b"Content-Length: 4\r\n" in head


async def test_a_refused_method_hears_which_are_allowed() -> None:
    async with serve() as port:
        assert b"\r\nAllow: GET, HEAD\r\n" in await ask(port, b"PUT /readyz HTTP/1.1\r\n\r\n")


async def test_an_answer_arrives_although_a_body_comes_after_the_head() -> None:
    async with (
        serve() as port,
        aiohttp.request("POST", f"http://127.0.0.1:{port}/healthz", data=bytes(1 << 20)) as answer,
    ):
        assert answer.status == 405


async def test_a_head_may_come_byte_by_byte() -> None:
    request = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
    async with serve() as port:
        answer = await ask(port, *(request[place : place + 1] for place in range(len(request))))

    assert answer.endswith(b"ok\n")


async def test_figures_that_fail_are_an_error_and_the_rest_goes_on() -> None:
    def fail() -> bytes:
        raise ZeroDivisionError

    async with serve_health("127.0.0.1", 0, Readiness(), fail) as port:
        assert b"500 Internal Server Error" in await ask(port, b"GET /metrics HTTP/1.1\r\n\r\n")
        assert b"200 OK" in await ask(port, b"GET /healthz HTTP/1.1\r\n\r\n")


@pytest.fixture
def cut_off(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Make the deadline short; the event tells that a connection has ended."""
    ended = asyncio.Event()
    lose = http._Connection.connection_lost

    def note(connection: http._Connection, exc: Exception | None) -> None:
        lose(connection, exc)
        ended.set()

    monkeypatch.setattr(http._Connection, "connection_lost", note)
    monkeypatch.setattr(http, "_CONNECTION_SECONDS", 0.05)
    return ended


async def test_who_sends_too_slowly_is_cut_off(cut_off: asyncio.Event) -> None:
    async with serve() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /healthz HTTP/1.1\r\n")
        await cut_off.wait()
        assert await _read_rest(reader) == b""
        writer.close()


async def test_who_does_not_read_is_cut_off(cut_off: asyncio.Event) -> None:
    page = b"x" * (16 << 20)
    async with asyncio.timeout(20), serve_health("127.0.0.1", 0, Readiness(), lambda: page) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
        writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
        await cut_off.wait()
        assert len(await _read_rest(reader)) < len(page)
        writer.close()


async def test_silent_clients_do_not_keep_others_out() -> None:
    async with serve() as port:
        silent = [
            await asyncio.open_connection("127.0.0.1", port)
            for _ in range(http._MOST_CONNECTIONS + 10)
        ]
        assert b"200 OK" in await ask(port, b"GET /healthz HTTP/1.1\r\n\r\n")
        assert await _read_rest(silent[0][0]) == b"", "the oldest has to go"
    for reader, writer in silent:
        assert await _read_rest(reader) == b"", "the server's end is theirs"
        writer.close()


async def _read_rest(reader: asyncio.StreamReader) -> bytes:
    got = b""
    with suppress(ConnectionResetError):
        while data := await reader.read(1 << 20):
            got += data
    return got


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
async def test_it_listens_on_an_ipv6_address() -> None:
    async with (
        serve("::1") as port,
        aiohttp.request("GET", f"http://[::1]:{port}/healthz") as answer,
    ):
        assert answer.status == 200


async def test_an_address_in_use_is_an_error() -> None:
    async with serve() as port:
        with pytest.raises(OSError, match="in use"):
            async with serve_health("127.0.0.1", port, Readiness(), bytes):
                pass
