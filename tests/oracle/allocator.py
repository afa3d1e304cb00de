"""Asks the allocator of one Kubernetes version (tests/cluster/tools/oracle)."""

from __future__ import annotations

import select
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

Object = dict[str, Any]

GATES: Final[Mapping[str, bool]] = {
    "AdminAccess": True,
    "ConsumableCapacity": True,
    "DeviceBindingAndStatus": True,
    "DeviceTaints": True,
    "FractionalCapacityRange": True,
    "PartitionableDevices": True,
    "PrioritizedList": True,
}
"""What kube-scheduler 1.36 and 1.37 switch on by default; 1.36 does not know the range."""
_ANSWER_SECONDS: Final = 30.0
"""Three times what the program allows itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """May these claims have devices of this node?

    Attributes:
        node: The Node object.
        slices: All ResourceSlices that there are.
        classes: All DeviceClasses.
        claims: Those to be allocated, together.
        allocated: Claims with an allocation, of all nodes.
        gates: Allocator features by name, see `GATES`.
    """

    node: Object
    slices: Sequence[Object]
    classes: Sequence[Object]
    claims: Sequence[Object]
    allocated: Sequence[Object] = ()
    gates: Mapping[str, bool] = field(default_factory=lambda: GATES)


class Answer(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """What the allocator says.

    Attributes:
        allocations: ``status.allocation`` of each claim; ``None`` if the node has no room.
        error: Why it cannot even be tried; "" if it can. The scheduler gives such a pod up.
        of_node: Whether the error is about this node alone, and others are still tried.
    """

    allocations: list[Object] | None
    error: str = ""
    of_node: bool = False


class Allocator:
    """A running program; one question at a time.

    Args:
        program: See `toolchain.ensure_oracles`.
        version: Of k8s.io/dynamic-resource-allocation, such as ``v0.37.1``.
    """

    def __init__(self, program: Path, version: str) -> None:
        self.version = version
        self._decode = msgspec.json.Decoder(Answer).decode
        self._process = subprocess.Popen(  # noqa: S603 - what we built ourselves
            [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def ask(self, question: Question) -> Answer:
        """Return the allocator's answer.

        Raises:
            AssertionError: The question is not one: a field that Kubernetes does not know, or text
                where a number belongs.
            TimeoutError: There is no answer.
        """
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(
            msgspec.json.encode(
                {
                    "features": question.gates,
                    "node": question.node,
                    "slices": question.slices,
                    "classes": question.classes,
                    "claims": question.claims,
                    "allocated": question.allocated,
                }
            )
            + b"\n"
        )
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], _ANSWER_SECONDS)
        if not ready:
            raise TimeoutError(f"the allocator {self.version} does not answer")
        answer = self._decode(process.stdout.readline() or self._explain_end())
        assert not answer.error.startswith(("question: ", "features: ")), answer.error
        return answer

    def close(self) -> None:
        """End the program."""
        self._process.communicate(timeout=_ANSWER_SECONDS)

    def _explain_end(self) -> bytes:
        _, errors = self._process.communicate(timeout=_ANSWER_SECONDS)
        raise AssertionError(f"the allocator {self.version} ended: {errors.decode()[-4000:]}")
