"""Tells the kubelet that this plugin is there (pluginregistration v1).

Protocol facts (k8s.io/kubernetes pkg/kubelet/pluginmanager): the kubelet watches
``plugins_registry`` for sockets, gives GetInfo one second, takes the first supported version that
it knows, and treats a removed socket as "deregister". So the answers are constants, on a server of
their own; this socket appears last and disappears first.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import grpc
import structlog

from hami_dra._pb.registration_v1_pb2 import (
    InfoRequest,
    PluginInfo,
    RegistrationStatus,
    RegistrationStatusResponse,
)
from hami_dra.kubeletplugin.socket import Handlers, open_server

_log = structlog.get_logger(__name__)

_SERVICE: Final = "pluginregistration.Registration"
_PLUGIN_TYPE: Final = "DRAPlugin"
_GRACE_SECONDS: Final = 1.0


class Registration:
    """The registration socket of one plugin.

    Args:
        socket: Path in the kubelet's ``plugins_registry``.
        driver: Driver name.
        endpoint: Socket that serves the DRA API; must be served already.
        versions: gRPC service names, newest first.
        on_status: Called with ``None`` when the kubelet has registered us, else with its reason.
    """

    def __init__(
        self,
        *,
        socket: Path,
        driver: str,
        endpoint: Path,
        versions: tuple[str, ...],
        on_status: Callable[[str | None], None],
    ) -> None:
        self._socket = socket
        self._info = PluginInfo(
            type=_PLUGIN_TYPE,
            name=driver,
            endpoint=str(endpoint),
            supported_versions=versions,
        )
        self._on_status = on_status
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Serve the socket; from here on the kubelet may call.

        Raises:
            FatalError: The socket cannot be made.
        """
        handlers: Handlers = {
            "GetInfo": grpc.unary_unary_rpc_method_handler(
                self._get_info,
                request_deserializer=InfoRequest.FromString,
                response_serializer=PluginInfo.SerializeToString,
            ),
            "NotifyRegistrationStatus": grpc.unary_unary_rpc_method_handler(
                self._notify,
                request_deserializer=RegistrationStatus.FromString,
                response_serializer=RegistrationStatusResponse.SerializeToString,
            ),
        }
        self._server = await open_server(self._socket, {_SERVICE: handlers})

    async def stop(self) -> None:
        """Take the socket away, which deregisters the plugin. Idempotent."""
        self._socket.unlink(missing_ok=True)
        if self._server is not None:
            await self._server.stop(_GRACE_SECONDS)
            self._server = None

    async def _get_info(self, _: InfoRequest, __: object) -> PluginInfo:
        return self._info

    async def _notify(self, status: RegistrationStatus, _: object) -> RegistrationStatusResponse:
        if status.plugin_registered:
            _log.info("kubelet.registered", driver=self._info.name)
            self._on_status(None)
        else:
            _log.error("kubelet.refused", driver=self._info.name, error=status.error)
            self._on_status(f"the kubelet refused the plugin: {status.error}")
        return RegistrationStatusResponse()
