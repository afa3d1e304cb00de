"""The controller process: one leader among its replicas looks after the templates."""

import socket
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from hami_dra.contract.settings import DEFAULT_SETTINGS, AdmissionSettings
from hami_dra.controller.collect import DEFAULT_AGE_SECONDS, Collector
from hami_dra.controller.metrics import ControllerMetrics
from hami_dra.kube import Api, connect
from hami_dra.kube.lease import LeaderLease
from hami_dra.service.clock import SystemClock
from hami_dra.service.http import Readiness, serve_health
from hami_dra.service.supervise import Supervisor

_log = structlog.get_logger(__name__)

LEASE_NAME: Final = "hami-dra-controller"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the process was started.

    Attributes:
        health_host: Address for health and metrics (HTTP).
        health_port: Its port; 0 for any.
        lease_namespace: Where the Lease is kept.
        template_age_seconds: How old and for how long unused a template must be to be deleted.
        kubeconfig: ``None`` inside a cluster.
        admission: The webhook's own configuration: templates are made again by it.
    """

    health_host: str
    health_port: int
    lease_namespace: str
    template_age_seconds: float = DEFAULT_AGE_SECONDS
    kubeconfig: Path | None = None
    admission: AdmissionSettings = DEFAULT_SETTINGS


@asynccontextmanager
async def serve(settings: Settings, api: Api, supervisor: Supervisor) -> AsyncIterator[int]:
    """Take part in the election while the block runs; yield the port of the health endpoints.

    Ready means taking part: a replica that waits for its turn is as good as the leader.

    Raises:
        OSError: The address cannot be bound.
    """
    metrics = ControllerMetrics()
    readiness = Readiness("serving")
    clock = SystemClock()
    lease = LeaderLease(
        api,
        namespace=settings.lease_namespace,
        name=LEASE_NAME,
        identity=f"{socket.gethostname()}_{uuid.uuid4()}",
        clock=clock,
        on_change=metrics.lead,
    )

    async def collect() -> None:
        collector = Collector(
            api,
            clock,
            metrics,
            settings=settings.admission,
            age_seconds=settings.template_age_seconds,
        )
        await collector.run()

    async with serve_health(
        settings.health_host, settings.health_port, readiness, metrics.render
    ) as health:
        supervisor.spawn("leader-election", lease.run(collect))
        readiness.set("serving", None)
        _log.info("controller.serving", health_port=health)
        try:
            yield health
        finally:
            readiness.set("serving", "stopping")


async def run(settings: Settings) -> None:
    """Serve until a signal; the Lease is released on the way out.

    Raises:
        FatalError: No usable API server.
        OSError: See `serve`.
    """
    async with (
        connect(settings.kubeconfig) as session,
        Supervisor() as supervisor,
        serve(settings, Api(session), supervisor),
    ):
        await supervisor.wait()
