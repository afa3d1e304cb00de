"""The real publisher with many devices, timed: ``python -m ...nodebench.publisher NODE``.

Prints a line for each thing that is timed: its name and milliseconds, one figure a repeat.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any, Final

from hami_dra.contract.names import DRIVER_NAME
from hami_dra.kube import Api, connect
from hami_dra.kubeletplugin.publisher import Publisher
from hami_dra.policy.devices import describe_devices
from hami_dra.policy.taints import CORDONED
from hami_dra.service.logs import configure_logs
from tests.cluster.simcards import make_cards

DEVICES: Final = 16 * 7
_REPEATS: Final = 7
_LIMIT_SECONDS: Final = 20.0


async def run(node: str) -> dict[str, list[float]]:
    """Return milliseconds by what was done."""
    cards = make_cards(["A100"] * DEVICES)
    plain = describe_devices(cards, split_count=10)
    marked = describe_devices(cards, split_count=10, taints={cards[0].uuid: (CORDONED,)})
    fewer = describe_devices(cards[:16], split_count=10)
    published = asyncio.Event()

    def note(reason: str | None) -> None:
        if reason is None:
            published.set()

    found: dict[str, list[float]] = {}
    async with connect(None) as session:
        publisher = Publisher(Api(session), driver=DRIVER_NAME, node_name=node, on_state=note)
        running = asyncio.create_task(publisher.run(), name="publisher")

        async def publish(what: str, devices: list[dict[str, Any]]) -> None:
            published.clear()
            began = time.perf_counter()
            publisher.publish(devices)
            async with asyncio.timeout(_LIMIT_SECONDS):
                await published.wait()
            found.setdefault(what, []).append((time.perf_counter() - began) * 1000)

        await publish("the first slice", fewer)
        for _ in range(_REPEATS):
            await publish(f"ms from 16 to {DEVICES} devices in two slices", plain)
            await publish(f"ms to mark one of {DEVICES} devices", marked)
            await publish(f"ms from {DEVICES} to 16 devices", fewer)
        running.cancel()
    del found["the first slice"]
    return found


if __name__ == "__main__":
    configure_logs("warning")  # they would be among the figures
    for name, figures in asyncio.run(run(sys.argv[1])).items():
        sys.stdout.write(f"{name}: {' '.join(f'{each:.1f}' for each in figures)}\n")
