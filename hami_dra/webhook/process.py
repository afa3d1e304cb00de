"""The webhook process: what runs, in which order it starts and stops."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from hami_dra.contract.settings import DEFAULT_SETTINGS, AdmissionSettings
from hami_dra.kube import Api, connect
from hami_dra.kube.inventory import Inventory
from hami_dra.service.clock import SystemClock
from hami_dra.service.http import Readiness, serve_health
from hami_dra.service.supervise import Supervisor
from hami_dra.service.tls import limit_read_buffers
from hami_dra.webhook.certs import ServingCertificate
from hami_dra.webhook.charge import PodChargeReviewer
from hami_dra.webhook.metrics import WebhookMetrics
from hami_dra.webhook.mutate import PodReviewer
from hami_dra.webhook.quota import QuotaLedger
from hami_dra.webhook.server import build_app, serve_reviews
from hami_dra.webhook.templatestore import TemplateStore
from hami_dra.webhook.validate import ClaimReviewer

_log = structlog.get_logger(__name__)

PATH_PODS = "/mutate-pods"
PATH_CLAIMS = "/validate-claims"
PATH_CHARGES = "/validate-pods"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the process was started.

    Attributes:
        certificate_dir: Holds ``tls.crt`` and ``tls.key``.
        host: Address for reviews (HTTPS).
        port: Its port; 0 for any.
        health_host: Address for health and metrics (HTTP).
        health_port: Its port; 0 for any.
        leave_seconds: How long reviews are answered after the process was told to stop.
        kubeconfig: ``None`` inside a cluster.
        admission: What GPU keys mean here.
    """

    certificate_dir: Path
    host: str
    port: int
    health_host: str
    health_port: int
    leave_seconds: float = 0.0
    kubeconfig: Path | None = None
    admission: AdmissionSettings = DEFAULT_SETTINGS


@dataclass(frozen=True)
class Ports:
    """Where the process listens."""

    reviews: int
    health: int


@asynccontextmanager
async def serve(settings: Settings, api: Api, supervisor: Supervisor) -> AsyncIterator[Ports]:
    """Answer reviews while the block runs.

    Ready means serving, and that published cards and quotas have been read. What arrives before is
    answered all the same: only what cannot be decided without them is put off.

    Raises:
        FatalError: No usable certificate.
        OSError: An address cannot be bound.
    """
    metrics = WebhookMetrics()
    readiness = Readiness("serving", "slices", "quotas")
    certificate = ServingCertificate(settings.certificate_dir, metrics)
    inventory = Inventory(api)
    clock = SystemClock()
    ledger = QuotaLedger(api, clock, metrics, settings.admission.nvidia)
    pods = PodReviewer(
        TemplateStore(api, clock), inventory.nodes, settings.admission, ledger.limits
    )
    charges = PodChargeReviewer(api, ledger, inventory.nodes, settings.admission)
    claims = ClaimReviewer(
        inventory.nodes,
        ledger,
        allow_disable_control=settings.admission.allow_disable_control,
    )
    reviewers = {
        PATH_PODS: pods.review,
        PATH_CHARGES: charges.review,
        PATH_CLAIMS: claims.review,
    }
    app = build_app(reviewers, metrics)
    supervisor.spawn("certificate", certificate.run())
    supervisor.spawn("slices", inventory.run())
    supervisor.spawn("quotas", ledger.run())
    for name, synced in (("slices", inventory.wait_synced()), ("quotas", ledger.wait_synced())):
        supervisor.spawn(f"{name}.ready", _announce(readiness, name, synced))
    async with (
        serve_health(
            settings.health_host, settings.health_port, readiness, metrics.render
        ) as health,
        serve_reviews(
            app,
            settings.host,
            settings.port,
            certificate.context,
            leave_seconds=settings.leave_seconds,
        ) as reviews,
    ):
        readiness.set("serving", None)
        _log.info("webhook.serving", port=reviews, health_port=health)
        try:
            yield Ports(reviews=reviews, health=health)
        finally:
            readiness.set("serving", "stopping")


async def _announce(readiness: Readiness, name: str, synced: Awaitable[None]) -> None:
    await synced
    readiness.set(name, None)
    # What is known stays known: an informer never forgets, however long it cannot list.
    await asyncio.Event().wait()


async def run(settings: Settings) -> None:
    """Serve until a signal.

    Raises:
        FatalError: See `serve`; also no usable API server.
    """
    limit_read_buffers()
    async with (
        connect(settings.kubeconfig) as session,
        Supervisor() as supervisor,
        serve(settings, Api(session), supervisor),
    ):
        await supervisor.wait()
