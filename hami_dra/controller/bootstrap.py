"""Make a cluster know us: certificates, DeviceClass, webhook registrations."""

import asyncio
import datetime as dt
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import structlog

from hami_dra.contract.errors import FatalError, UserError
from hami_dra.contract.settings import DEFAULT_SETTINGS, AdmissionSettings
from hami_dra.controller.certdir import ensure_certificates
from hami_dra.controller.manifests import WebhookAddress, render_objects
from hami_dra.kube import Api, ApiError, connect
from hami_dra.service.clock import Clock, SystemClock
from hami_dra.service.retry import retry

_log = structlog.get_logger(__name__)

_BUDGET_SECONDS: Final = 60.0
"""The API server may be starting; a Job that gives up at once only makes noise."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How bootstrap was started.

    Attributes:
        certificate_dir: Where the certificates are kept, shared with the webhook.
        address: Where the API server finds the webhook.
        kubeconfig: ``None`` inside a cluster.
        admission: The webhook's own configuration: which pods it must see depends on it.
    """

    certificate_dir: Path
    address: WebhookAddress
    kubeconfig: Path | None = None
    admission: AdmissionSettings = DEFAULT_SETTINGS


def list_hosts(address: WebhookAddress) -> list[str]:
    """Return the names that the serving certificate must carry.

    Raises:
        UserError: The URL is not one that the API server accepts.
    """
    if not address.url:
        service = f"{address.name}.{address.namespace}.svc"
        return [service, f"{service}.cluster.local"]
    parts = urlsplit(address.url)
    if parts.scheme != "https" or not parts.hostname or parts.query or parts.username:
        raise UserError(f"{address.url!r} is not https://HOST[:PORT]", field="--webhook-url")
    return [parts.hostname]


async def bootstrap(
    settings: Settings, api: Api, clock: Clock, *, budget_seconds: float = _BUDGET_SECONDS
) -> None:
    """Write certificates and apply every object. Idempotent.

    Fields of ours that somebody changed are taken back (forced apply); fields that we do not write
    stay as they are.

    Raises:
        UserError: The webhook's URL is unusable.
        FatalError: The directory cannot be written, or the API server refuses.
    """
    hosts = list_hosts(settings.address)
    now = dt.datetime.fromtimestamp(clock.wall(), tz=dt.UTC)
    ca_bundle = await asyncio.to_thread(ensure_certificates, settings.certificate_dir, hosts, now)
    for resource, body in render_objects(settings.address, ca_bundle, settings.admission):
        name = str(body["metadata"]["name"])
        try:
            stored = await retry(
                partial(api.apply, resource, name, body, force=True),
                retryable=lambda error: isinstance(error, ApiError) and error.retryable,
                budget_seconds=budget_seconds,
            )
        except ApiError as error:
            raise FatalError(f"cannot apply {resource.kind} {name}: {error}") from error
        _check_stored(body, stored)
        _log.info("bootstrap.applied", kind=resource.kind, name=name)


def _check_stored(body: dict[str, Any], stored: dict[str, Any]) -> None:
    """Refuse a cluster that drops what pods then wait for in vain."""
    written = body.get("spec", {}).get("extendedResourceName")
    if written is not None and written != stored.get("spec", {}).get("extendedResourceName"):
        raise FatalError(
            f"DeviceClass {body['metadata']['name']}: the API server dropped "
            f"spec.extendedResourceName {written!r}; nativeWholeCards needs Kubernetes 1.36 "
            "(feature gate DRAExtendedResource), so switch it off or upgrade"
        )


async def run(settings: Settings) -> None:
    """Bootstrap once.

    Raises:
        UserError: See `bootstrap`.
        FatalError: See `bootstrap`; also no usable API server.
    """
    async with connect(settings.kubeconfig) as session:
        await bootstrap(settings, Api(session), SystemClock())
