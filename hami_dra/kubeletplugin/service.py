"""The DRA plugin service: batches of claims in, one answer for each claim out.

The messages of v1 and v1beta1 are the same on the wire, so one set of handlers serves both.

Protocol facts (k8s.io/kubernetes pkg/kubelet/cm/dra): the kubelet waits 45 s; an RPC error fails
every claim of the batch and an answer that lacks a claim is an error too, so what goes wrong with
one claim is said in that claim's own entry. A failed Prepare is asked for again only 60-90 s
later: transient faults are retried here, within the call.
"""

import asyncio
import contextvars
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import grpc
import structlog

from hami_dra._pb import dra_v1_pb2 as pb
from hami_dra.contract.errors import HamiDraError, RetryError
from hami_dra.kube import ApiError
from hami_dra.kubeletplugin.locks import ClaimLocks
from hami_dra.kubeletplugin.socket import Handlers, open_server
from hami_dra.service.retry import retry

_log = structlog.get_logger(__name__)

VERSIONS: Final = ("v1.DRAPlugin", "v1beta1.DRAPlugin")
"""What is advertised, newest first: the kubelet takes the first that it knows."""
_SERVICES: Final = tuple(f"k8s.io.kubelet.pkg.apis.dra.{version}" for version in VERSIONS)
_LIMIT_SECONDS: Final = 40.0
"""Hard end of one claim's work; the kubelet's own is 45 s."""

_NOTHING: Final[Mapping[str, Handlers]] = {}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ClaimRef:
    """A claim as the kubelet names it."""

    namespace: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class PreparedDevice:
    """One device of the answer; see `dra_v1.proto` for the fields."""

    request: str
    pool: str
    device: str
    cdi_ids: tuple[str, ...]
    share_id: str | None


class ClaimHandler(Protocol):
    """What does the work. Called for one claim at a time, for different claims at once."""

    async def prepare(self, claim: ClaimRef) -> Sequence[PreparedDevice]:
        """Make a claim's devices usable. Idempotent.

        Raises:
            HamiDraError: The claim's error text; `RetryError` and a retryable `ApiError` are
                tried again within the budget.
        """
        ...

    async def unprepare(self, claim: ClaimRef) -> None:
        """Undo it. Idempotent; an unknown claim is no error.

        Raises:
            HamiDraError: As for `prepare`.
        """
        ...


@dataclass(frozen=True, slots=True)
class ServiceStatistics:
    """Claims answered since the start."""

    prepared: int
    unprepared: int
    failed: int
    running: int


class DraService:
    """Serves the kubelet's calls on one socket.

    Args:
        socket: Path of the endpoint that `Registration` advertises.
        handler: Does the work.
        locks: Held for a claim while the handler works on it.
        budget_seconds: How long transient faults are retried.
        beside: Other services on the same socket, by their full names.
    """

    def __init__(
        self,
        *,
        socket: Path,
        handler: ClaimHandler,
        locks: ClaimLocks,
        budget_seconds: float,
        beside: Mapping[str, Handlers] = _NOTHING,
    ) -> None:
        self._socket = socket
        self._handler = handler
        self._budget_seconds = budget_seconds
        self._server: grpc.aio.Server | None = None
        self._locks = locks
        self._beside = beside
        self._work: set[asyncio.Task[Any]] = set()
        self._counts = {"prepare": 0, "unprepare": 0, "failed": 0}

    async def start(self) -> None:
        """Serve the socket.

        Raises:
            FatalError: The socket cannot be made.
        """
        handlers: Handlers = {
            "NodePrepareResources": grpc.unary_unary_rpc_method_handler(
                self._prepare_all,
                request_deserializer=pb.NodePrepareResourcesRequest.FromString,
                response_serializer=pb.NodePrepareResourcesResponse.SerializeToString,
            ),
            "NodeUnprepareResources": grpc.unary_unary_rpc_method_handler(
                self._unprepare_all,
                request_deserializer=pb.NodeUnprepareResourcesRequest.FromString,
                response_serializer=pb.NodeUnprepareResourcesResponse.SerializeToString,
            ),
        }
        self._server = await open_server(
            self._socket, {**dict.fromkeys(_SERVICES, handlers), **self._beside}
        )

    async def stop(self, grace_seconds: float) -> None:
        """Let running calls end, cut off those that take longer, remove the socket. Idempotent."""
        if self._server is not None:
            await self._server.stop(grace_seconds)
            self._server = None
        for task in self._work:
            task.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)
        self._socket.unlink(missing_ok=True)

    def statistics(self) -> ServiceStatistics:
        """Return counts since the start."""
        return ServiceStatistics(
            prepared=self._counts["prepare"],
            unprepared=self._counts["unprepare"],
            failed=self._counts["failed"],
            running=len(self._work),
        )

    async def _prepare_all(
        self, request: pb.NodePrepareResourcesRequest, _: object
    ) -> pb.NodePrepareResourcesResponse:
        refs = _list_refs(request.claims)
        answers = await _wait_for_all(
            [self._answer("prepare", ref, self._handler.prepare) for ref in refs]
        )
        response = pb.NodePrepareResourcesResponse()
        for ref, (devices, error) in zip(refs, answers, strict=True):
            entry = response.claims[ref.uid]
            entry.SetInParent()
            entry.error = error
            for device in devices or ():
                entry.devices.add(
                    request_names=[device.request],
                    pool_name=device.pool,
                    device_name=device.device,
                    cdi_device_ids=device.cdi_ids,
                    share_id=device.share_id,
                )
        return response

    async def _unprepare_all(
        self, request: pb.NodeUnprepareResourcesRequest, _: object
    ) -> pb.NodeUnprepareResourcesResponse:
        refs = _list_refs(request.claims)
        answers = await _wait_for_all(
            [self._answer("unprepare", ref, self._handler.unprepare) for ref in refs]
        )
        response = pb.NodeUnprepareResourcesResponse()
        for ref, (_done, error) in zip(refs, answers, strict=True):
            response.claims[ref.uid].SetInParent()
            response.claims[ref.uid].error = error
        return response

    async def _answer(
        self, verb: str, ref: ClaimRef, work: Callable[[ClaimRef], Awaitable[T]]
    ) -> tuple[T | None, str]:
        """Do one claim's work and return its result and error text; logs one line.

        The work goes on if the kubelet hangs up: half a Prepare is worth nothing, and the next
        call for the claim waits for its lock.
        """
        # The handler may bind words to this context, such as the pods; the line below has them.
        context = contextvars.copy_context()
        task = asyncio.get_running_loop().create_task(self._work_on(ref, work), context=context)
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        started = time.monotonic()
        error = ""
        result: T | None = None
        try:
            result = await asyncio.shield(task)
            self._counts[verb] += 1
        except HamiDraError as failure:
            error = str(failure)
        except TimeoutError:
            error = f"not done within {_LIMIT_SECONDS:g} s; the kubelet will ask again"
        except OSError as failure:
            error = f"{failure}; see the node's log"
        except Exception as failure:  # noqa: BLE001 - a bug must fail its claim, not the batch
            _log.error(f"{verb}.bug", claim=ref.uid, exc_info=failure)
            error = f"internal error: {failure!r}; please report it with the node's log"
        if error:
            self._counts["failed"] += 1
        words = {"devices": _name_devices(result)} if verb == "prepare" else {}
        context.run(
            _log.warning if error else _log.info,
            verb,
            claim=f"{ref.namespace}/{ref.name}",
            uid=ref.uid,
            ms=round((time.monotonic() - started) * 1000, 1),
            result=error or "ok",
            **words,
        )
        return result, error

    async def _work_on(self, ref: ClaimRef, work: Callable[[ClaimRef], Awaitable[T]]) -> T:
        async with asyncio.timeout(_LIMIT_SECONDS), self._locks.hold(ref.uid):
            return await retry(
                lambda: work(ref), retryable=is_transient, budget_seconds=self._budget_seconds
            )


async def _wait_for_all(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Return all results; a call is nearly always for one claim, which needs no task of its own."""
    if len(work) == 1:
        return [await work[0]]
    return await asyncio.gather(*work)


def _name_devices(result: object) -> list[str]:
    return (
        [item.device for item in result if isinstance(item, PreparedDevice)]
        if isinstance(result, Sequence)
        else []
    )


def is_transient(error: Exception) -> bool:
    """Whether the same work may succeed a little later."""
    return isinstance(error, RetryError) or (isinstance(error, ApiError) and error.retryable)


def _list_refs(claims: Sequence[pb.Claim]) -> list[ClaimRef]:
    """Return the claims of a request, each UID once."""
    unique = {claim.uid: ClaimRef(claim.namespace, claim.name, claim.uid) for claim in claims}
    return list(unique.values())
