"""/healthz, /readyz and /metrics for every process."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

_BODY_LIMIT: Final = 64 << 10


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


def add_health_routes(
    app: web.Application,
    readiness: Readiness,
    registry: CollectorRegistry | None = None,
) -> None:
    """Add the three endpoints to an application."""

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        return web.Response(status=200 if readiness.ready else 503, text=readiness.report())

    async def metrics(_: web.Request) -> web.Response:
        body = generate_latest(registry) if registry is not None else b""
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics)


@asynccontextmanager
async def serve_health(
    host: str, port: int, readiness: Readiness, registry: CollectorRegistry | None = None
) -> AsyncIterator[int]:
    """Serve the endpoints over plain HTTP and yield the bound port (``port`` 0: any free one).

    Raises:
        OSError: The address cannot be bound.
    """
    app = web.Application(client_max_size=_BODY_LIMIT)
    add_health_routes(app, readiness, registry)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()
