"""How the supervisor sees that a component is ready, and its relays from unix sockets to TCP."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from urllib.parse import urlsplit

INTERVAL_SECONDS = 0.05
ATTEMPT_SECONDS = 2.0
CHUNK = 1 << 16


async def wait_until_answering(ready: str) -> None:
    """Return once the address in ``ready`` answers. Safe to cancel; the caller sets the limit."""
    while True:
        if await is_answering(ready):
            return
        await asyncio.sleep(INTERVAL_SECONDS)


async def is_answering(ready: str) -> bool:
    """Return whether the address in ``ready`` answers, with 200 if it is a URL."""
    with contextlib.suppress(OSError, TimeoutError, ssl.SSLError, asyncio.IncompleteReadError):
        async with asyncio.timeout(ATTEMPT_SECONDS):
            return await _answers(ready)
    return False


async def _answers(ready: str) -> bool:
    if ready.startswith("unix:"):
        _, writer = await asyncio.open_unix_connection(ready.removeprefix("unix:"))
        writer.close()
        return True
    url = urlsplit(ready)
    context = _unverified() if url.scheme == "https" else None
    reader, writer = await asyncio.open_connection(url.hostname, url.port, ssl=context)
    try:
        writer.write(f"GET {url.path} HTTP/1.0\r\nHost: {url.hostname}\r\n\r\n".encode())
        status = await reader.readline()
        return status.split()[1:2] == [b"200"]
    finally:
        writer.close()


def _unverified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def serve_relay(path: str, host: str, port: int) -> asyncio.Server:
    """Carry connections on a unix socket to a TCP address in the supervisor's network namespace.

    A unix socket is reached by its path from every network namespace, a TCP address is not.
    """

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await carry(reader, writer, host, port)

    return await asyncio.start_unix_server(accept, path)


async def carry(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int
) -> None:
    """Carry one connection to a TCP address until both ends are closed."""
    try:
        far_reader, far_writer = await asyncio.open_connection(host, port)
    except OSError:
        writer.close()
        return
    async with asyncio.TaskGroup() as both:
        both.create_task(_pump(reader, far_writer))
        both.create_task(_pump(far_reader, writer))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(OSError):
        writer.close()
