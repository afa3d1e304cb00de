"""gRPC servers on UNIX sockets in the kubelet's directories."""

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import grpc

from hami_dra.contract.errors import FatalError

_DIRECTORY_MODE: Final = 0o750
_PROBE_SECONDS: Final = 1.0


Handlers = dict[str, "grpc.RpcMethodHandler[Any, Any]"]
"""Of one service, by the names of its methods."""


async def open_server(path: Path, services: Mapping[str, Handlers]) -> grpc.aio.Server:
    """Serve services, by their full names, on a socket; replaces the file of a killed process.

    Raises:
        FatalError: The socket cannot be made, or another process answers on it.
    """
    try:
        _make_room(path)
    except OSError as error:
        raise FatalError(
            f"socket {path} cannot be made: {error}; is --kubelet-dir the kubelet's root "
            "directory, mounted read-write?"
        ) from error
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        tuple(
            grpc.method_handlers_generic_handler(service, handlers)
            for service, handlers in services.items()
        )
    )
    try:
        server.add_insecure_port(f"unix:{path}")
    except RuntimeError as error:
        raise FatalError(f"socket {path} cannot be listened on: {error}") from error
    await server.start()
    return server


def _make_room(path: Path) -> None:
    """Remove a socket that nobody answers on. A few calls on a local directory, at start only."""
    path.parent.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
    if _is_answered(path):
        raise FatalError(f"another process answers on {path}; only one instance may run on a node")
    path.unlink(missing_ok=True)


def _is_answered(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_SECONDS)
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True
