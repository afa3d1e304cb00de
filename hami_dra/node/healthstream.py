"""Tells the kubelet which devices are well, for ``allocatedResourcesStatus`` of pods.

Protocol facts (k8s.io/kubernetes pkg/kubelet/cm/dra, KEP-4680): the kubelet keeps one stream open
and opens it again 5 s after its end; a device without a report for its timeout becomes unknown.
What is said here informs people only: taints keep claims away.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Final

import grpc

from hami_dra._pb import dra_health_v1_pb2 as pb
from hami_dra.kubeletplugin.socket import Handlers
from hami_dra.policy.devices import GpuFacts, name_device
from hami_dra.policy.health import Fault
from hami_dra.policy.migdevices import MigDevice
from hami_dra.service.clock import Clock

VERSIONS: Final = ("v1.DRAResourceHealth", "v1alpha1.DRAResourceHealth")
"""Full names of the services, newest first, as they are advertised."""
_TIMEOUT_SECONDS: Final = 30
_RESEND_SECONDS: Final = _TIMEOUT_SECONDS / 3
_LONGEST_MESSAGE: Final = 1024
"""The kubelet cuts what is longer."""


class HealthStream:
    """Serves any number of streams, each with the state of all devices.

    Args:
        pool: Name of the node's pool.
        clock: For the time in a report.
    """

    def __init__(self, *, pool: str, clock: Clock) -> None:
        self._pool = pool
        self._clock = clock
        self._faults: Mapping[str, tuple[Fault, ...]] = {}
        self._devices: tuple[tuple[str, str], ...] = ()
        self._changed = asyncio.Event()
        self._closed = False

    def services(self) -> dict[str, Handlers]:
        """Return the handlers of both versions, by the names of the services."""
        handlers: Handlers = {
            "NodeWatchResources": grpc.unary_stream_rpc_method_handler(
                self._watch,
                request_deserializer=pb.NodeWatchResourcesRequest.FromString,
                response_serializer=pb.NodeWatchResourcesResponse.SerializeToString,
            )
        }
        return dict.fromkeys(VERSIONS, handlers)

    def set_cards(self, cards: tuple[GpuFacts, ...], parts: Iterable[MigDevice] = ()) -> None:
        """Report these cards from now on, and the parts of divided ones that exist."""
        self._devices = (
            *((name_device(gpu.uuid), gpu.uuid) for gpu in cards),
            *((part.name, part.card.uuid) for part in parts),
        )
        self._wake()

    def set_faults(self, faults: Mapping[str, tuple[Fault, ...]]) -> None:
        """Report the cards with these UUIDs as unhealthy from now on, and all others as healthy."""
        self._faults = dict(faults)
        self._wake()

    def close(self) -> None:
        """End all streams, which a stopping server would wait for. Idempotent."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _watch(
        self, _: pb.NodeWatchResourcesRequest, __: object
    ) -> AsyncIterator[pb.NodeWatchResourcesResponse]:
        while not self._closed:
            changed = self._changed
            yield self._report()
            try:
                async with asyncio.timeout(_RESEND_SECONDS):
                    await changed.wait()
            except TimeoutError:
                continue  # time to say it again

    def _report(self) -> pb.NodeWatchResourcesResponse:
        now = int(self._clock.wall())
        report = pb.NodeWatchResourcesResponse()
        for name, uuid in self._devices:
            faults = self._faults.get(uuid, ())
            report.devices.add(
                device=pb.DeviceIdentifier(pool_name=self._pool, device_name=name),
                health=pb.HealthStatus.UNHEALTHY if faults else pb.HealthStatus.HEALTHY,
                last_updated_time=now,
                health_check_timeout_seconds=_TIMEOUT_SECONDS,
                message="; ".join(fault.message for fault in faults)[:_LONGEST_MESSAGE],
            )
        return report
