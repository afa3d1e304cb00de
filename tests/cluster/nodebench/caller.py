"""The kubelet's part as a process of its own: ``python -m tests.cluster.nodebench.caller PLAN``.

Registers the driver as kubelet does, then prepares and unprepares claims over one connection, as
kubelet keeps one, and prints how long each call took. The plan is JSON, see `Plan`.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import grpc
import msgspec

from hami_dra._pb import dra_v1_pb2 as pb
from hami_dra.contract.names import DRIVER_NAME
from hami_dra.testing.fakekubelet import FakeKubelet

if TYPE_CHECKING:
    from collections.abc import Sequence

_SERVICE: Final = "/k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin"
_CALL_SECONDS: Final = 45.0


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to call.

    Attributes:
        kubelet_dir: Where the driver registers.
        claims: ``namespace``, ``name`` and ``uid`` of each.
        rounds: How often all of them are prepared and unprepared again.
        at_once: How many calls begin at a time; the next ones begin when all have their answers.
        spread_seconds: Over how long they begin, evenly, whether those before have been answered.
        keep: Whether the claims stay prepared after the last round.
    """

    kubelet_dir: str
    claims: list[dict[str, str]]
    rounds: int = 1
    at_once: int = 1
    spread_seconds: float = 0.0
    keep: bool = False


class Calls(msgspec.Struct, frozen=True, kw_only=True):
    """How long calls took in milliseconds, by the UID of the claim, in the order of the rounds.

    Attributes:
        prepare_ms: Each Prepare.
        unprepare_ms: Each Unprepare.
        batches_ms: By verb, from the first call to the last answer of those that began at once.
        seconds: All of it.
    """

    prepare_ms: dict[str, list[float]]
    unprepare_ms: dict[str, list[float]]
    batches_ms: dict[str, list[float]]
    seconds: float


class _Connection:
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._methods: dict[str, grpc.aio.UnaryUnaryMultiCallable[Any, Any]] = {
            "prepare": channel.unary_unary(
                f"{_SERVICE}/NodePrepareResources",
                request_serializer=pb.NodePrepareResourcesRequest.SerializeToString,
                response_deserializer=pb.NodePrepareResourcesResponse.FromString,
            ),
            "unprepare": channel.unary_unary(
                f"{_SERVICE}/NodeUnprepareResources",
                request_serializer=pb.NodeUnprepareResourcesRequest.SerializeToString,
                response_deserializer=pb.NodeUnprepareResourcesResponse.FromString,
            ),
        }

    async def call(self, verb: str, claim: dict[str, str]) -> float:
        """Prepare or unprepare one claim; return the milliseconds.

        Raises:
            RuntimeError: It was not done.
        """
        claims = [pb.Claim(**claim)]
        request: Any = (
            pb.NodePrepareResourcesRequest(claims=claims)
            if verb == "prepare"
            else pb.NodeUnprepareResourcesRequest(claims=claims)
        )
        began = time.perf_counter()
        answer = await self._methods[verb](request, timeout=_CALL_SECONDS)
        took = (time.perf_counter() - began) * 1000
        if error := answer.claims[claim["uid"]].error:
            raise RuntimeError(f"{verb} {claim['name']}: {error}")
        return took


async def run(plan: Plan) -> Calls:
    """Register the driver and make the calls of a plan."""
    kubelet = FakeKubelet(Path(plan.kubelet_dir))
    info = await kubelet.register(DRIVER_NAME, timeout_seconds=20.0)
    found: dict[str, dict[str, list[float]]] = {
        verb: {claim["uid"]: [] for claim in plan.claims} for verb in ("prepare", "unprepare")
    }
    batches: dict[str, list[float]] = {verb: [] for verb in found}
    async with grpc.aio.insecure_channel(f"unix:{info.endpoint}") as channel:
        await channel.channel_ready()
        connection = _Connection(channel)
        began = time.perf_counter()
        for number in range(plan.rounds):
            verbs = ("prepare",) if plan.keep and number == plan.rounds - 1 else found
            for verb in verbs:
                for start in range(0, len(plan.claims), plan.at_once):
                    claims = plan.claims[start : start + plan.at_once]
                    batch_began = time.perf_counter()
                    await _call_all(connection, verb, claims, plan.spread_seconds, found[verb])
                    batches[verb].append((time.perf_counter() - batch_began) * 1000)
        seconds = time.perf_counter() - began
    return Calls(
        prepare_ms=found["prepare"],
        unprepare_ms=found["unprepare"],
        batches_ms=batches,
        seconds=seconds,
    )


async def _call_all(
    connection: _Connection,
    verb: str,
    claims: Sequence[dict[str, str]],
    spread_seconds: float,
    found: dict[str, list[float]],
) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()

    async def call(number: int, claim: dict[str, str]) -> float:
        if spread_seconds:
            due = began + number * spread_seconds / len(claims)
            await asyncio.sleep(max(due - loop.time(), 0.0))
        return await connection.call(verb, claim)

    took = await asyncio.gather(*(call(number, claim) for number, claim in enumerate(claims)))
    for claim, each in zip(claims, took, strict=True):
        found[claim["uid"]].append(each)


if __name__ == "__main__":
    planned = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Plan)
    sys.stdout.buffer.write(msgspec.json.encode(asyncio.run(run(planned))))
