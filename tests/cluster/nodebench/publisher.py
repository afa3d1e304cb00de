"""The real publisher with many MIG devices, timed: ``python -m ...nodebench.publisher NODE ROOT``.

The cards of the driver at ROOT are in MIG mode. Each is divided into seven by NVML, found as the
node process finds them, and offered as it offers them; only the filling is on a loop.

Prints a line for each thing that is timed: its name and milliseconds, one figure a repeat.
"""

from __future__ import annotations

import asyncio
import ctypes
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hami_dra.contract.names import DRIVER_NAME
from hami_dra.gpu.nvml import NvmlSource
from hami_dra.kube import Api, connect
from hami_dra.kubeletplugin.publisher import Publisher
from hami_dra.node.offer import Offer
from hami_dra.policy.cardrules import CardRules
from hami_dra.service.logs import configure_logs

if TYPE_CHECKING:
    from collections.abc import Callable

PARTS: Final = 7
"""Instances of each card."""
_SMALLEST: Final = 19
"""NVML_GPU_INSTANCE_PROFILE_1_SLICE's number on an A100: 1g.5gb."""
_REPEATS: Final = 7
_LIMIT_SECONDS: Final = 20.0

Object = dict[str, Any]


def divide(source: NvmlSource) -> None:
    """Make all instances that fit on each card. Blocking."""
    with source.library.session() as nvml:
        for index in range(nvml.nvmlDeviceGetCount()):
            card = nvml.nvmlDeviceGetHandleByIndex(index)
            for start in range(PARTS):
                place = nvml.c_nvmlGpuInstancePlacement_t(start, 1)
                instance = nvml.nvmlDeviceCreateGpuInstanceWithPlacement(
                    card, _SMALLEST, ctypes.byref(place)
                )
                profile = nvml.nvmlGpuInstanceGetComputeInstanceProfileInfo(instance, 0, 0)
                nvml.nvmlGpuInstanceCreateComputeInstance(instance, profile.id)


async def run(node: str, root: Path) -> dict[str, list[float]]:
    """Return milliseconds by what was done."""
    source = NvmlSource(root)
    whole = tuple(replace(gpu, mig=None) for gpu in (await source.discover()).gpus)
    divide(source)
    divided = (await source.discover()).gpus
    count = len(divided) * PARTS
    published = asyncio.Event()

    def note(reason: str | None) -> None:
        if reason is None:
            published.set()

    found: dict[str, list[float]] = {}
    async with connect(None) as session:
        publisher = Publisher(Api(session), driver=DRIVER_NAME, node_name=node, on_state=note)
        running = asyncio.create_task(publisher.run(), name="publisher")
        devices: list[Object] = []

        def publish(offered: list[Object], counters: list[Object]) -> None:
            devices[:] = offered
            publisher.publish(offered, counters)

        offer = Offer(publish, rules=CardRules())

        async def wait(what: str, expected: int, change: Callable[[], None]) -> None:
            published.clear()
            began = time.perf_counter()
            change()
            async with asyncio.timeout(_LIMIT_SECONDS):
                await published.wait()
            found.setdefault(what, []).append((time.perf_counter() - began) * 1000)
            if len(devices) != expected:
                raise RuntimeError(f"{what}: {len(devices)} devices instead of {expected}")

        await wait("the first slice", len(whole), lambda: offer.set_cards(whole, ()))
        one = {divided[0].uuid}
        for _ in range(_REPEATS):
            await wait(
                f"ms from {len(whole)} cards to {count} MIG devices",
                count,
                lambda: offer.set_cards(divided, ()),
            )
            marked = f"ms to mark the {PARTS} devices of one of the cards"
            await wait(marked, count, lambda: offer.set_cordoned(one))
            offer.set_cordoned(())
            await wait(
                f"ms from {count} MIG devices to {len(whole)} cards",
                len(whole),
                lambda: offer.set_cards(whole, ()),
            )
        running.cancel()
    del found["the first slice"]
    return found


if __name__ == "__main__":
    configure_logs("warning")  # they would be among the figures
    for name, figures in asyncio.run(run(sys.argv[1], Path(sys.argv[2]))).items():
        sys.stdout.write(f"{name}: {' '.join(f'{each:.1f}' for each in figures)}\n")
