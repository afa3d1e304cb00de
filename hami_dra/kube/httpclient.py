"""aiohttp's client, without the system's certificates, and asyncio's TLS with smaller buffers.

On import aiohttp reads all certificates for a context of its own: 2 MiB and 50 ms in every process,
for a context that nothing here uses, because an API server has its own CA (see `ApiSession`).
"""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager

from hami_dra.service.tls import limit_read_buffers


@contextmanager
def _without_system_certificates() -> Iterator[None]:
    load = ssl.SSLContext.load_default_certs

    def load_none(_: ssl.SSLContext, __: ssl.Purpose = ssl.Purpose.SERVER_AUTH) -> None:
        pass

    ssl.SSLContext.load_default_certs = load_none  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        ssl.SSLContext.load_default_certs = load  # type: ignore[method-assign]


with _without_system_certificates():
    import aiohttp

limit_read_buffers()

__all__ = ["aiohttp"]
