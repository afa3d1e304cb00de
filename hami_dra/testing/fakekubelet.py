"""The kubelet's side of the plugin sockets, as far as a DRA driver sees it.

Same calls, order and time limits as pkg/kubelet/pluginmanager and pkg/kubelet/cm/dra: GetInfo
within 1 s, Notify within 5 s, Prepare and Unprepare through the advertised endpoint within 45 s,
answers checked for exactly the claims that were asked for.
"""

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import grpc
from google.protobuf.message import Message

from hami_dra._pb import dra_health_v1_pb2 as health
from hami_dra._pb import dra_v1_pb2 as dra
from hami_dra._pb import registration_v1_pb2 as registration

_INFO_SECONDS: Final = 1.0
_NOTIFY_SECONDS: Final = 5.0
_CALL_SECONDS: Final = 45.0
_POLL_SECONDS: Final = 0.02

T = TypeVar("T", bound=Message)


@dataclass(frozen=True, slots=True)
class FakeClaim:
    """A claim as the kubelet names it in its calls."""

    uid: str
    name: str
    namespace: str = "default"


class FakeKubelet:
    """Registers plugins that appear in a directory and calls them.

    Args:
        kubelet_dir: The kubelet's root directory, with ``plugins_registry`` below it.
        refusal: Text of a refusal instead of a registration, "" to register.
        knows: Services that it can speak; of a plugin's it takes the first one.
    """

    def __init__(
        self,
        kubelet_dir: Path,
        *,
        refusal: str = "",
        knows: Sequence[str] = ("v1.DRAPlugin", "v1beta1.DRAPlugin"),
    ) -> None:
        self._registry = kubelet_dir / "plugins_registry"
        self._refusal = refusal
        self._knows = knows
        self._service = ""

    async def register(
        self, driver: str, *, beside: Collection[str] = (), timeout_seconds: float = 5.0
    ) -> registration.PluginInfo:
        """Wait for a driver's socket, ask who it is, and tell it the verdict.

        Args:
            driver: Its name.
            beside: Endpoints that are registered already: another instance is awaited.
            timeout_seconds: How long.

        Raises:
            TimeoutError: No such socket came.
            ValueError: It answers as something that a kubelet would refuse.
        """
        async with asyncio.timeout(timeout_seconds):
            while True:
                for path in self.sockets():
                    try:
                        info = await self.ask(path)
                    except grpc.aio.AioRpcError:
                        continue  # a dead socket; tried again as the kubelet does
                    if info.name == driver and info.endpoint not in beside:
                        self._check(info)
                        await self.notify(path, error=self._refusal)
                        return info
                await asyncio.sleep(_POLL_SECONDS)

    async def ask(self, socket: Path) -> registration.PluginInfo:
        """Call GetInfo with the kubelet's time limit."""
        return await _call(
            socket,
            "/pluginregistration.Registration/GetInfo",
            registration.InfoRequest(),
            registration.PluginInfo,
            _INFO_SECONDS,
        )

    async def notify(self, socket: Path, *, error: str = "") -> None:
        """Tell a plugin whether it is registered."""
        await _call(
            socket,
            "/pluginregistration.Registration/NotifyRegistrationStatus",
            registration.RegistrationStatus(plugin_registered=not error, error=error),
            registration.RegistrationStatusResponse,
            _NOTIFY_SECONDS,
        )

    async def prepare(
        self, endpoint: str, *claims: FakeClaim
    ) -> dict[str, dra.NodePrepareResourceResponse]:
        """Prepare claims in one call and return the answers by UID.

        Raises:
            ValueError: The answers are not exactly for these claims.
            grpc.aio.AioRpcError: The call failed as a whole.
        """
        answer = await _call(
            Path(endpoint),
            f"{self._service}/NodePrepareResources",
            dra.NodePrepareResourcesRequest(claims=_claims(claims)),
            dra.NodePrepareResourcesResponse,
            _CALL_SECONDS,
        )
        _check_uids(answer.claims, claims)
        return dict(answer.claims)

    async def unprepare(self, endpoint: str, *claims: FakeClaim) -> dict[str, str]:
        """Unprepare claims in one call and return the error texts by UID.

        Raises:
            ValueError: The answers are not exactly for these claims.
            grpc.aio.AioRpcError: The call failed as a whole.
        """
        answer = await _call(
            Path(endpoint),
            f"{self._service}/NodeUnprepareResources",
            dra.NodeUnprepareResourcesRequest(claims=_claims(claims)),
            dra.NodeUnprepareResourcesResponse,
            _CALL_SECONDS,
        )
        _check_uids(answer.claims, claims)
        return {uid: entry.error for uid, entry in answer.claims.items()}

    @asynccontextmanager
    async def watch_health(
        self, endpoint: str, *, version: str = "v1"
    ) -> AsyncIterator[AsyncIterator[dict[str, str]]]:
        """Open the health stream; each report is device name to HEALTHY, UNHEALTHY or UNKNOWN."""
        async with _channel(Path(endpoint)) as channel:
            call = channel.unary_stream(
                f"/{version}.DRAResourceHealth/NodeWatchResources",
                request_serializer=health.NodeWatchResourcesRequest.SerializeToString,
                response_deserializer=health.NodeWatchResourcesResponse.FromString,
            )(health.NodeWatchResourcesRequest())

            async def reports() -> AsyncIterator[dict[str, str]]:
                async for report in call:
                    yield {
                        item.device.device_name: health.HealthStatus.Name(item.health)
                        for item in report.devices
                    }

            try:
                yield reports()
            finally:
                call.cancel()

    def sockets(self) -> list[Path]:
        """Return the registration sockets that a kubelet would see."""
        if not self._registry.is_dir():
            return []
        return sorted(
            path
            for path in self._registry.rglob("*")
            if path.is_socket() and not path.name.startswith(".")
        )

    def _check(self, info: registration.PluginInfo) -> None:
        if info.type != "DRAPlugin" or not Path(info.endpoint).is_socket():
            raise ValueError(f"not a DRA plugin with a live endpoint: {info}")
        for version in info.supported_versions:
            if version in self._knows:
                self._service = f"/k8s.io.kubelet.pkg.apis.dra.{version}"
                return
        raise ValueError(f"no version that a kubelet knows: {info.supported_versions}")


async def _call(
    socket: Path, method: str, request: Message, answer: type[T], timeout_seconds: float
) -> T:
    async with _channel(socket) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[Message, T] = channel.unary_unary(
            method,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        return await call(request, timeout=timeout_seconds, wait_for_ready=True)


@asynccontextmanager
async def _channel(socket: Path) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
        yield channel


def _claims(claims: Iterable[FakeClaim]) -> list[dra.Claim]:
    return [dra.Claim(namespace=c.namespace, name=c.name, uid=c.uid) for c in claims]


def _check_uids(answers: Iterable[str], claims: Iterable[FakeClaim]) -> None:
    expected, got = {claim.uid for claim in claims}, set(answers)
    if expected != got:
        raise ValueError(f"asked for {sorted(expected)}, answered {sorted(got)}")
