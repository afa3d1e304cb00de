"""The webhook once for each of many admission settings, in one process of a test cluster.

Each has a port and all see the same slices. On a unix socket a test waits until they do: it sends
a line with the nodes' cards that there should be, as ``[[[mib, cores, slots], …], …]``, and gets an
empty line when there are exactly these.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from hami_dra.contract.settings import decode_settings
from hami_dra.kube import Api, connect
from hami_dra.kube.inventory import Inventory
from hami_dra.policy.fit import Card, NodeCards
from hami_dra.service.clock import SystemClock
from hami_dra.service.logs import configure_logs
from hami_dra.service.supervise import Supervisor
from hami_dra.webhook.certs import ServingCertificate
from hami_dra.webhook.metrics import WebhookMetrics
from hami_dra.webhook.mutate import PodReviewer
from hami_dra.webhook.process import PATH_CLAIMS, PATH_PODS
from hami_dra.webhook.server import build_app, serve_reviews
from hami_dra.webhook.templatestore import TemplateStore
from hami_dra.webhook.validate import ClaimReviewer


async def run(plan: dict[str, Any]) -> None:
    """Serve until a signal.

    Args:
        plan: ``kubeconfig``, ``certificates`` (a directory), ``socket``, and the ``settings`` by
            port.
    """
    metrics = WebhookMetrics()
    certificate = ServingCertificate(Path(plan["certificates"]), metrics)
    async with (
        connect(Path(plan["kubeconfig"])) as session,
        Supervisor() as supervisor,
        AsyncExitStack() as servers,
    ):
        api = Api(session)
        inventory = Inventory(api)
        supervisor.spawn("slices", inventory.run())
        await inventory.wait_synced()
        templates = TemplateStore(api, SystemClock())
        claims = ClaimReviewer(inventory.nodes)
        for port, settings in plan["settings"].items():
            pods = PodReviewer(templates, inventory.nodes, decode_settings(settings))
            app = build_app({PATH_PODS: pods.review, PATH_CLAIMS: claims.review}, metrics)
            serving = serve_reviews(app, "127.0.0.1", int(port), certificate.context)
            await servers.enter_async_context(serving)
        await servers.enter_async_context(await _serve_waiting(plan["socket"], inventory))
        await supervisor.wait()


async def _serve_waiting(path: str, inventory: Inventory) -> asyncio.Server:
    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wanted = decode_shapes(await reader.readline())
        while True:
            inventory.changed.clear()
            if inventory.nodes() == wanted:
                break
            await inventory.changed.wait()
        writer.write(b"\n")
        await writer.drain()
        writer.close()

    return await asyncio.start_unix_server(wait, path)


def encode_shapes(nodes: frozenset[NodeCards]) -> bytes:
    """Return the line that a test sends."""
    shapes = [[[card.memory_mib, card.cores, card.slots] for card in node] for node in nodes]
    return json.dumps(shapes).encode() + b"\n"


def decode_shapes(line: bytes) -> frozenset[NodeCards]:
    """Return what `encode_shapes` wrote."""
    return frozenset(tuple(Card(*card) for card in node) for node in json.loads(line))


if __name__ == "__main__":
    configure_logs("info")
    asyncio.run(run(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
