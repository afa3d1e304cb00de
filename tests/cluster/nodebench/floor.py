"""The least that Prepare can take here: ``python -m tests.cluster.nodebench.floor PLACE``.

Serves a kubelet as the node process does, over the same library, and answers that all is done
without doing anything. Before that it does bare what has to be done on the disk, and says how long
that took, so that both are of the same minutes and the same machine as what they are compared with.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Final

import grpc
import msgspec

from hami_dra._pb import dra_v1_pb2 as pb
from hami_dra.contract.names import DRIVER_NAME
from hami_dra.kubeletplugin.registration import Registration
from hami_dra.kubeletplugin.service import VERSIONS
from hami_dra.kubeletplugin.socket import Handlers, open_server

_SERVICE: Final = "k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin"
_CONTENT: Final = b"x" * 1000
_GROUP: Final = 16
_ROUNDS: Final = 7
_THREADS: Final = ThreadPoolExecutor(max_workers=8)


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where it serves and writes.

    Attributes:
        kubelet_dir: A directory of its own.
        state_dir: On the disk of the node process's.
        cdi_dir: In memory, as the node process's.
        claims: How many at once.
        result: Where the milliseconds of each round on the disk go, as JSON.
    """

    kubelet_dir: str
    state_dir: str
    cdi_dir: str
    claims: int
    result: str


def write_claims(place: Place) -> float:
    """Write what claims need, as few waits as we know of, without any thought; return the ms."""
    state, cdi = Path(place.state_dir), Path(place.cdi_dir)
    for directory in (state, cdi):
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
    with closing(sqlite3.connect(state / "log.db", isolation_level=None)) as log:
        log.execute("PRAGMA journal_mode = WAL")
        log.execute("PRAGMA synchronous = FULL")
        log.execute("CREATE TABLE claims (uid TEXT PRIMARY KEY, record BLOB)")
        began = time.perf_counter()
        for first in range(0, place.claims, _GROUP):
            names = [str(number) for number in range(first, min(first + _GROUP, place.claims))]
            log.execute("PRAGMA synchronous = NORMAL")
            _commit(log, "INSERT INTO claims VALUES (?, zeroblob(1000))", names)
            _write_group(f"{state}", f"{cdi}", names)
            log.execute("PRAGMA synchronous = FULL")
            _commit(log, "UPDATE claims SET record = zeroblob(1001) WHERE uid = ?", names)
        return (time.perf_counter() - began) * 1000


def _commit(log: sqlite3.Connection, statement: str, names: list[str]) -> None:
    log.execute("BEGIN IMMEDIATE")
    log.executemany(statement, [(name,) for name in names])
    log.execute("COMMIT")


def _write_group(state: str, cdi: str, names: list[str]) -> None:
    waiting: list[int] = []
    for name in names:
        os.makedirs(f"{state}/{name}/request/region")  # noqa: PTH103 - the calls themselves
        for file in ("record", "request/grant", "request/metadata"):
            os.close(_write(f"{state}/{name}/{file}"))
        waiting += [_write(f"{cdi}/{name}-{kind}") for kind in ("claim", "metadata")]
    _wait(waiting)
    _wait([os.open(cdi, os.O_RDONLY)])


def _write(path: str) -> int:
    descriptor = os.open(f"{path}.tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.write(descriptor, _CONTENT)
    os.rename(f"{path}.tmp", path)  # noqa: PTH104 - the calls themselves
    return descriptor


def _wait(descriptors: list[int]) -> None:
    list(_THREADS.map(os.fsync, descriptors))
    for descriptor in descriptors:
        os.close(descriptor)


async def _prepare(
    request: pb.NodePrepareResourcesRequest, _: object
) -> pb.NodePrepareResourcesResponse:
    answer = pb.NodePrepareResourcesResponse()
    for claim in request.claims:
        answer.claims[claim.uid].devices.add(
            request_names=["main"], pool_name="pool", device_name="card", cdi_device_ids=["a/b=c"]
        )
    return answer


async def _unprepare(
    request: pb.NodeUnprepareResourcesRequest, _: object
) -> pb.NodeUnprepareResourcesResponse:
    answer = pb.NodeUnprepareResourcesResponse()
    for claim in request.claims:
        answer.claims[claim.uid].SetInParent()
    return answer


async def serve(place: Place) -> None:
    """Answer until cancelled."""
    kubelet = Path(place.kubelet_dir)
    socket = kubelet / "plugins" / DRIVER_NAME / "dra.sock"
    handlers: Handlers = {
        "NodePrepareResources": grpc.unary_unary_rpc_method_handler(
            _prepare,
            request_deserializer=pb.NodePrepareResourcesRequest.FromString,
            response_serializer=pb.NodePrepareResourcesResponse.SerializeToString,
        ),
        "NodeUnprepareResources": grpc.unary_unary_rpc_method_handler(
            _unprepare,
            request_deserializer=pb.NodeUnprepareResourcesRequest.FromString,
            response_serializer=pb.NodeUnprepareResourcesResponse.SerializeToString,
        ),
    }
    server = await open_server(socket, {_SERVICE: handlers})
    registration = Registration(
        socket=kubelet / "plugins_registry" / f"{DRIVER_NAME}-reg.sock",
        driver=DRIVER_NAME,
        endpoint=socket,
        versions=VERSIONS,
        on_status=lambda _: None,
    )
    await registration.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    planned = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Place)
    took = [write_claims(planned) for _ in range(_ROUNDS)]
    Path(planned.result).write_bytes(msgspec.json.encode(took))
    asyncio.run(serve(planned))
