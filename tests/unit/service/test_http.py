"""Health endpoints tell what is missing."""

import aiohttp
from prometheus_client import CollectorRegistry, Counter

from hami_dra.service.http import Readiness, serve_health


async def test_readyz_names_what_is_missing_and_metrics_are_served() -> None:
    readiness = Readiness("nvml", "slices")
    readiness.set("slices", None)
    registry = CollectorRegistry()
    Counter("prepares", "Prepares.", registry=registry).inc()

    async with (
        serve_health("127.0.0.1", 0, readiness, registry) as port,
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client,
    ):
        async with client.get("/readyz") as answer:
            assert answer.status == 503
            assert await answer.text() == "nvml: not yet\nslices: ok\n"
        readiness.set("nvml", None)
        async with client.get("/readyz") as answer:
            assert answer.status == 200
        async with client.get("/metrics") as answer:
            assert "prepares_total 1.0" in await answer.text()
        async with client.get("/healthz") as answer:
            assert answer.status == 200
