"""One program under test: ``python -m tests.gpu.worker REQUEST``, which is a JSON object.

Answers with one JSON object on standard output, and holds what it has until its input ends. It runs
with or without a library preloaded and does not know which.
"""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from tests.gpu import torchwork
from tests.gpu.driver import MIB, OUT_OF_MEMORY, CudaError, Driver, used_by_all

if TYPE_CHECKING:
    from collections.abc import Callable

_PIECE_MIB: Final = 16
_CALIBRATION: Final = 1_000_000
_GRAPH_KERNELS: Final = 10
_MOST_AHEAD_SECONDS: Final = 0.02
"""Of work that is asked for and not done: a window ends soon after its time."""


def main() -> int:
    """Do what is asked for; 1 and a line on standard error where that cannot be done."""
    request = json.loads(sys.argv[1])
    try:
        answer = _ANSWERS[request["what"]](request)
    except (CudaError, OSError, ImportError, RuntimeError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(json.dumps(answer), flush=True)
    sys.stdin.read()
    return 0


def _tell_facts(_request: dict[str, Any]) -> dict[str, Any]:
    driver = Driver()
    return {
        "name": driver.name(),
        "uuid": driver.uuid(),
        "cuda": driver.version(),
        "mib": driver.memory()[1] // MIB,
        "torch": torchwork.find_missing(),
    }


def _tell_used(request: dict[str, Any]) -> dict[str, Any]:
    return {"mib": used_by_all(request["uuid"])}


def _calibrate(_request: dict[str, Any]) -> dict[str, Any]:
    driver = Driver()
    stream, function = driver.create_stream(), driver.load_kernel()
    times = [driver.time_kernel(function, _CALIBRATION, stream) for _ in range(5)]
    return {"ns_per_unit": min(times) / _CALIBRATION}


def _tell_memory(request: dict[str, Any]) -> dict[str, Any]:
    """Return MiB: what was told, or what was got before there was no more."""
    driver = Driver()
    if request["kind"] == "context":
        return {"mib": 0}
    if request["kind"] == "told":
        return {"mib": driver.memory()[1] / MIB}
    kind = "plain" if request["kind"] == "beyond" else request["kind"]
    got, last = 0, 0
    for piece in (_PIECE_MIB, 2):
        while got < request["most_mib"]:
            try:
                last = driver.allocate(kind, piece * MIB)
            except CudaError as error:
                if error.code != OUT_OF_MEMORY:
                    raise
                break
            got += piece
    if request["kind"] == "beyond" and last and not driver.remembers(last, MIB):
        raise RuntimeError("memory beyond the card does not keep what was written")
    return {"mib": got}


def _work(request: dict[str, Any]) -> dict[str, Any]:
    """Return how much was done per second, in each window."""
    mode = request["mode"]
    step = _make_step(request) if mode in {"loop", "sync", "graph"} else torchwork.make_step(mode)
    step.wait()
    ahead = _warm_up(step)
    while time.monotonic() < request["begin_at"]:
        time.sleep(0.001)
    rates = []
    for _ in range(request["windows"]):
        began, done = time.monotonic(), 0
        while time.monotonic() - began < request["window_seconds"]:
            step.run()
            done += 1
            if done % ahead == 0:
                step.wait()
        step.wait()
        rates.append(done / (time.monotonic() - began))
    return {"rates": rates}


def _warm_up(step: torchwork.Step) -> int:
    """Load, learn, and fill the caches; return how many steps may be under way."""
    for _ in range(5):
        step.run()
    step.wait()
    began = time.monotonic()
    for _ in range(20):
        step.run()
    step.wait()
    return max(1, min(256, int(_MOST_AHEAD_SECONDS * 20 / (time.monotonic() - began))))


def _make_step(request: dict[str, Any]) -> torchwork.Step:
    driver = Driver()
    stream, function = driver.create_stream(), driver.load_kernel()
    amount = max(1, round(request["kernel_us"] * 1000 / request["ns_per_unit"]))

    def wait() -> None:
        driver.synchronise(stream)

    if request["mode"] == "graph":
        graph = driver.capture(function, amount, _GRAPH_KERNELS, stream)
        return torchwork.Step(lambda: driver.launch_graph(graph, stream), wait)

    def run() -> None:
        driver.launch(function, amount, stream)
        if request["mode"] == "sync":
            driver.synchronise(stream)

    return torchwork.Step(run, wait)


def _tell_tensors(request: dict[str, Any]) -> dict[str, Any]:
    return {"mib": torchwork.fill(request["kind"], request["most_mib"])}


_ANSWERS: Final[dict[str, Callable[[dict[str, Any]], dict[str, Any]]]] = {
    "facts": _tell_facts,
    "calibrate": _calibrate,
    "memory": _tell_memory,
    "tensors": _tell_tensors,
    "used": _tell_used,
    "work": _work,
}

if __name__ == "__main__":
    sys.exit(main())
