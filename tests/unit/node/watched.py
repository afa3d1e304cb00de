"""A node that follows its prepared claims."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hami_dra.contract.grant import decode_grant
from hami_dra.contract.names import ANNOTATION_LIMITS
from hami_dra.contract.quantity import MIB
from hami_dra.kube.objects import CLAIMS
from hami_dra.kubeletplugin.service import ClaimRef
from hami_dra.node.claimwatch import ClaimWatch, FollowedClaims
from hami_dra.node.preparer import Step, no_step
from hami_dra.service.clock import ManualClock
from hami_dra.testing.fakecluster import FakeCluster
from tests.unit.node.rig import Rig, make_claim, make_share, put_claim, start_rig

if TYPE_CHECKING:
    from hami_dra.policy.driverlimits import DriverHold


class Watched:
    """A node with its watch, and hands on the clock."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.clock = ManualClock()
        self.leads = True
        self.missed = self.held_changes = 0
        self.holds: dict[str, DriverHold] | None = {}
        self.watch = ClaimWatch(
            api=rig.cluster.api(),
            ledger=rig.ledger,
            preparer=rig.preparer,
            locks=rig.locks,
            clock=self.clock,
            interval_seconds=15,
            leads=self._check_lead,
            on_missing=self._note_missing,
            driver_holds=lambda _: self.holds,
            on_held=self._note_held,
        )
        self.handler = FollowedClaims(rig.preparer, self.watch)

    async def _check_lead(self) -> bool:
        return self.leads

    def _note_missing(self) -> None:
        self.missed += 1

    def _note_held(self) -> None:
        self.held_changes += 1

    async def look(self) -> None:
        """Let more than an interval pass, and look."""
        await self.watch.meet()
        self.clock.advance(120)
        await self.watch.look()

    def claim(self) -> dict[str, Any]:
        """Return the claim as it is stored."""
        (stored,) = self.rig.cluster.objects(CLAIMS)
        return stored

    def entry(self) -> dict[str, Any]:
        """Return what the status says of its only device."""
        (entry,) = self.claim()["status"]["devices"]
        return dict(entry)

    def conditions(self) -> dict[str, tuple[str, str]]:
        """Return status and reason of each condition."""
        return {c["type"]: (c["status"], c["reason"]) for c in self.entry()["conditions"]}

    def limits(self) -> tuple[int, int]:
        """Return MiB and percent in the grant."""
        uid = self.claim()["metadata"]["uid"]
        path = self.rig.settings.state_dir / "claims" / uid / "gpu" / "grant"
        (device,) = decode_grant(path.read_bytes()).devices
        return device.memory_limit_bytes // MIB, device.cores_percent

    async def ask(self, text: str | None) -> None:
        """Write the annotation as a person would."""
        metadata = {"annotations": {ANNOTATION_LIMITS: text}}
        await self.rig.cluster.api().patch(CLAIMS, "job", {"metadata": metadata}, namespace="team")


@asynccontextmanager
async def watching(
    base: Path, cluster: FakeCluster, *, step: Step = no_step
) -> AsyncIterator[Watched]:
    async with start_rig(base, cluster, step=step) as rig:
        yield Watched(rig)


async def put_watched(cluster: FakeCluster) -> ClaimRef:
    claim = make_claim("job", make_share())
    claim["status"]["reservedFor"] = [{"resource": "pods", "name": "p", "uid": "uid-p"}]
    return await put_claim(cluster, claim)
