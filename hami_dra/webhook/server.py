"""HTTPS in, verdicts out: limits on size and time, one log line, counters."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from ssl import SSLContext
from typing import Final

import structlog
from aiohttp import web

from hami_dra.contract.errors import UserError
from hami_dra.webhook.metrics import WebhookMetrics
from hami_dra.webhook.review import Request, Verdict, decode_review, encode_review, fail, postpone

_log = structlog.get_logger(__name__)

_BODY_LIMIT_BYTES: Final = 20 << 20
"""An object is at most 1.5 MiB in etcd, six times that in JSON that escapes each ``<`` and ``&``
(encoding/json), and an update carries two."""
REVIEW_SECONDS: Final = 8.0
"""Less than the configuration's timeoutSeconds (10), so that the author reads our reason."""
_DRAIN_SECONDS: Final = 9.0

Reviewer = Callable[[Request], Awaitable[Verdict]]


def build_app(
    reviewers: Mapping[str, Reviewer],
    metrics: WebhookMetrics,
    *,
    review_seconds: float = REVIEW_SECONDS,
) -> web.Application:
    """Return an application that answers POST on each path with its reviewer's verdict."""
    app = web.Application(client_max_size=_BODY_LIMIT_BYTES)
    for path, reviewer in reviewers.items():
        app.router.add_post(path, _build_handler(path, reviewer, metrics, review_seconds))
    return app


def _build_handler(
    path: str, reviewer: Reviewer, metrics: WebhookMetrics, review_seconds: float
) -> Callable[[web.Request], Awaitable[web.Response]]:
    malformed = metrics.reviews.labels(path, "malformed")
    observe = metrics.seconds.labels(path).observe
    count: dict[str, Callable[[], None]] = {}

    async def handle(http: web.Request) -> web.Response:
        try:
            request = decode_review(await _read_body(http, review_seconds))
        except TimeoutError:
            return web.Response(status=408, text="the body did not arrive in time\n")
        except UserError as error:
            malformed.inc()
            _log.warning("admission.malformed", path=path, error=str(error))
            return web.Response(status=400, text=f"{error}\n")
        started = time.perf_counter()
        verdict = await _review(reviewer, request, review_seconds)
        seconds = time.perf_counter() - started
        # Looking up a labelled child takes a lock and checks every name, each time.
        if verdict.result not in count:
            count[verdict.result] = metrics.reviews.labels(path, verdict.result).inc
        count[verdict.result]()
        observe(seconds)
        _log.info(
            "admission",
            path=path,
            uid=request.uid,
            operation=request.operation,
            kind=request.kind.kind,
            namespace=request.namespace,
            name=request.object_name,
            dry_run=bool(request.dry_run),
            result=verdict.result,
            reason=verdict.message,
            warnings=len(verdict.warnings),
            ms=round(seconds * 1000, 2),
        )
        return web.Response(
            body=encode_review(request.uid, verdict), content_type="application/json"
        )

    return handle


async def _read_body(http: web.Request, limit_seconds: float) -> bytes:
    if http.content.is_eof():
        return await http.read()  # all of it has arrived, as it nearly always has
    async with asyncio.timeout(limit_seconds):
        return await http.read()


async def _review(reviewer: Reviewer, request: Request, review_seconds: float) -> Verdict:
    try:
        async with asyncio.timeout(review_seconds):
            return await reviewer(request)
    except TimeoutError:
        return postpone(f"no decision within {review_seconds:g} s")
    except Exception:  # noqa: BLE001 - a verdict for every review; the trace goes to the log
        # The API server would only report a broken connection; it keeps the pod out either way.
        _log.exception("admission.broken", uid=request.uid)
        return fail(f"internal error; see the webhook's log for review {request.uid}")


@asynccontextmanager
async def serve_reviews(
    app: web.Application,
    host: str,
    port: int,
    context: SSLContext,
    *,
    leave_seconds: float = 0.0,
) -> AsyncIterator[int]:
    """Serve over TLS and yield the bound port (``port`` 0: any free one).

    On the way out reviews are answered for a while longer, each with the wish to close its
    connection: the API server keeps connections, sends reviews over them for as long as they are
    open, and does not repeat one whose connection was closed at that moment. Then no new
    connection is taken and reviews in progress are finished.

    Args:
        app: See `build_app`.
        host: Where.
        port: Where.
        context: Of TLS.
        leave_seconds: The while; as long as Services may take to send others elsewhere.

    Raises:
        OSError: The address cannot be bound.
    """
    leaving = False

    async def close_connection(_: web.Request, response: web.StreamResponse) -> None:
        if leaving:
            response.force_close()
            response.headers["Connection"] = "close"

    app.on_response_prepare.append(close_connection)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=_DRAIN_SECONDS)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port, ssl_context=context)
        await site.start()
        yield int(runner.addresses[0][1])
        leaving = True
        await asyncio.sleep(leave_seconds)
    finally:
        await runner.cleanup()
