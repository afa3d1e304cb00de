"""Stands in for a Service: one address, and connections to the replicas that are ready.

Like kube-proxy it decides once per connection, tries no second replica, and leaves connections
alone that it has made: what a replica does at its end is felt by the API server.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from dataclasses import dataclass

from tests.cluster import probes

PROBE_SECONDS = 0.25
READY = "with {}"
"""What the log says when a port is a target from now on."""


@dataclass(slots=True)
class Replica:
    """A process behind the Service: ports of this machine."""

    port: int
    health_port: int
    ready: bool = False


class Service:
    """Carries connections."""

    def __init__(self, replicas: list[Replica]) -> None:
        self._replicas = replicas
        self._turn = itertools.count()

    async def run(self, port: int) -> None:
        """Serve until cancelled."""
        server = await asyncio.start_server(self._carry, "127.0.0.1", port)
        async with server, asyncio.TaskGroup() as group:
            for replica in self._replicas:
                group.create_task(self._watch(replica))

    async def _watch(self, replica: Replica) -> None:
        url = f"http://127.0.0.1:{replica.health_port}/readyz"
        while True:
            ready = await probes.is_answering(url)
            if ready != replica.ready:
                replica.ready = ready
                print(
                    READY.format(replica.port) if ready else f"without {replica.port}", flush=True
                )
            await asyncio.sleep(PROBE_SECONDS)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ready = [replica for replica in self._replicas if replica.ready]
        if not ready:
            writer.close()
            return
        await probes.carry(reader, writer, "127.0.0.1", ready[next(self._turn) % len(ready)].port)


def main(arguments: list[str]) -> None:
    """Serve ``PORT REPLICA_PORT:HEALTH_PORT…``."""
    port, *replicas = arguments
    pairs = (each.split(":") for each in replicas)
    found = [Replica(int(serving), int(health)) for serving, health in pairs]
    asyncio.run(Service(found).run(int(port)))


if __name__ == "__main__":
    main(sys.argv[1:])
