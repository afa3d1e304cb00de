"""A node that dies and comes back, between a scheduler, a kubelet and an API server of this model.

The scheduler knows only what the API server holds: a claim that was deleted by force has room for
it at once, whatever still runs. The kubelet asks again until it has an answer, as the real one
does, and after a reboot for everything that it has pods for.
"""

import random
import shutil
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hami_dra.contract.errors import HamiDraError
from hami_dra.kube.objects import CLAIMS
from hami_dra.node.ledger import CardTakenError, ClaimRecord
from hami_dra.policy.devices import name_device
from hami_dra.policy.migdevices import name_placement
from hami_dra.testing.crashpoints import Point, watch_points
from hami_dra.testing.fakecluster import FakeCluster
from hami_dra.testing.fakegpus import make_gpu
from tests.unit.node.cuts import PowerCut
from tests.unit.node.dividedcard import OTHERS, DividedCard, make_part
from tests.unit.node.rig import Rig, make_claim, make_share, put_claim, refer, start_rig

if TYPE_CHECKING:
    from hami_dra.kubeletplugin.service import ClaimRef

CARDS: Final = 3
"""Shared ones; the next one is divided."""
DIVIDED: Final = make_gpu(CARDS)
PLACEMENTS: Final = (
    *(("1g.5gb", start, 1) for start in range(4, 7)),
    ("2g.10gb", 4, 2),
    ("3g.20gb", 4, 4),
)
"""Profile, first slice, number of slices. The rest of the card is somebody else's."""
MEMORY_MIB: Final = 40960
SLOTS: Final = 10


class Fuse:
    """Cuts the power before the n-th point; from then on nothing has an effect any more."""

    def __init__(self) -> None:
        self.left: int | None = None
        self.blown: Point | None = None

    def __call__(self, point: Point) -> None:  # noqa: D102 - the listener's
        if self.blown is None and self.left is not None:
            self.left -= 1
            if self.left < 0:
                self.blown = point
        if self.blown is not None:
            raise PowerCut(f"before {self.blown.verb} {self.blown.target}")


class Node:
    """One node over all of its lives.

    Attributes:
        cuts: The points before which the power was cut.
        known: Claims that the kubelet has asked for, and not had unprepared.
        answered: Those of them for which it has devices.
    """

    def __init__(self, base: Path, cluster: FakeCluster, chance: random.Random) -> None:
        self.cuts: list[Point] = []
        self.known: dict[str, ClaimRef] = {}
        self.answered: set[str] = set()
        self._base = base
        self._cluster = cluster
        self._chance = chance
        self._claims: dict[str, dict[str, Any]] = {}
        self._boot = 1
        self._numbers = 0
        self._fuse = Fuse()
        self._life = AsyncExitStack()
        self._rig: Rig | None = None
        self._card = DividedCard(base, DIVIDED)
        self._card.put(DIVIDED.uuid, OTHERS)

    # --- lives

    async def start(self, *, may_fail: bool = False) -> None:
        """Begin a life; the power may be cut while it repairs what the last one left."""
        await self.end()
        self._fuse = Fuse()
        self._fuse.left = self._chance.randrange(60) if may_fail else None
        try:
            roots = (self._base / "state", self._base / "cdi")
            self._life.enter_context(watch_points(self._fuse, *roots))
            rig = start_rig(
                self._base,
                self._cluster,
                boot_id=f"boot-{self._boot}",
                control=self._card,
                mig_dynamic=(DIVIDED.uuid,),
                procfs=self._card.procfs,
            )
            self._rig = await self._life.enter_async_context(rig)
            for number in range(CARDS):
                gpu = make_gpu(number, memory_mib=MEMORY_MIB)
                self._rig.gpus[name_device(gpu.uuid)] = gpu
            self._card.show_to(self._rig, read_at=time.monotonic())
            await self._rig.recovery.start()
            await self._rig.partitions.refresh()
        except PowerCut:
            await self.start()
        self._fuse.left = None

    async def end(self) -> None:
        """End a life, the process or the power."""
        if self._fuse.blown is not None:
            self.cuts.append(self._fuse.blown)
        try:
            await self._life.aclose()
        except PowerCut:
            self._life = AsyncExitStack()

    async def reboot(self) -> None:
        """Lose what a reboot loses, and be asked again for everything that there are pods for."""
        await self.end()
        self._boot += 1
        shutil.rmtree(self._base / "cdi", ignore_errors=True)
        self._card.reboot()
        self._card.put(DIVIDED.uuid, OTHERS)
        self.answered.clear()
        await self.start(may_fail=self._chance.random() < 0.3)
        for uid in list(self.known):
            await self.prepare(uid)

    @property
    def rig(self) -> Rig:
        """What runs now."""
        assert self._rig is not None
        return self._rig

    # --- what happens

    async def create(self) -> None:
        """Let the scheduler allocate a claim, if the API server knows of room, and prepare it."""
        self._numbers += 1
        name = f"c{self._numbers}"
        results = [
            self._allocate(number, share)
            for share, number in enumerate(self._chance.choices(range(CARDS), k=self._size()))
        ]
        if self._chance.random() < 0.3:
            results = [self._place(), *results[: self._chance.randrange(2)]]
        claim = make_claim(name, *results)
        uid = refer(claim).uid
        if not self._fits([*self._claims.values(), claim]):
            return
        self.known[uid] = await put_claim(self._cluster, claim)
        self._claims[uid] = claim
        await self.prepare(uid)

    def _place(self) -> dict[str, Any]:
        profile, start, _ = self._chance.choice(PLACEMENTS)
        return make_part(profile, start, gpu=DIVIDED, request="m")

    def _size(self) -> int:
        return self._chance.choice((1, 1, 2, 3))

    def _allocate(self, number: int, share: int) -> dict[str, Any]:
        request = self._chance.choice(("a", "b", "c/small"))
        kind = self._chance.random()
        changes: dict[str, Any] = {"device": name_device(make_gpu(number).uuid), "request": request}
        if kind < 0.1:
            changes |= {"shareID": None, "consumedCapacity": None}
        elif kind < 0.2:
            changes |= {"adminAccess": True}
        memory = self._chance.choice((1000, 9000, 20000, MEMORY_MIB))
        return make_share(
            number,
            share=share + 1,
            memory_mib=memory,
            cores=self._chance.choice((0, 30)),
            **changes,
        )

    def _fits(self, claims: list[dict[str, Any]]) -> bool:
        results = [
            result
            for claim in claims
            for result in claim["status"]["allocation"]["devices"]["results"]
            if not result.get("adminAccess")
        ]
        slices = [
            at
            for profile, start, size in PLACEMENTS
            for result in results
            if result["device"] == name_placement(DIVIDED.uuid, profile, start)
            for at in range(start, start + size)
        ]
        if len(slices) != len(set(slices)):
            return False
        for device in {result["device"] for result in results}:
            mine = [result for result in results if result["device"] == device]
            if len(mine) > 1 and any("shareID" not in result for result in mine):
                return False
            shares = [result["consumedCapacity"] for result in mine if "shareID" in result]
            if (
                sum(int(share["memory"].removesuffix("Mi")) for share in shares) > MEMORY_MIB
                or sum(int(share["cores"]) for share in shares) > 100
                or len(shares) > SLOTS
            ):
                return False
        return True

    async def prepare(self, uid: str) -> None:
        """Ask for a claim until there is an answer, or the reason is that another holds it."""

        async def work() -> None:
            await self.rig.preparer.prepare(self.known[uid])

        if uid not in self._claims:
            return  # the kubelet asks the API server first
        try:
            await self._persist(uid, work, may_end=True)
        except PowerCut:
            return
        except HamiDraError as error:
            self._require_reason(error)
        else:
            self.answered.add(uid)

    def _require_reason(self, error: HamiDraError) -> None:
        """Accept one reason only: a card that is still held by claims that were deleted by force.

        Only the scheduler knows more than the node: it has their room, and their containers run.
        """
        if isinstance(error, CardTakenError) and set(error.holders) - set(self._claims):
            return
        if "no longer exist" not in str(error):
            raise AssertionError("refused without a reason") from error

    async def unprepare(self, uid: str) -> None:
        """End a claim's pods: the kubelet asks until it is done, with or without the claim."""
        ref = self.known[uid]
        if self._chance.random() < 0.5:
            await self.delete(uid)
        await self._persist(uid, lambda: self.rig.preparer.unprepare(ref))
        await self.delete(uid)
        del self.known[uid]
        self.answered.discard(uid)

    async def delete(self, uid: str) -> None:
        """Delete a claim from the API server, by force if it is prepared."""
        if self._claims.pop(uid, None) is not None:
            await self._cluster.remove(CLAIMS, self.known[uid].name, namespace="team")

    async def _persist(
        self, uid: str, work: Callable[[], Awaitable[None]], *, may_end: bool = False
    ) -> None:
        """Work, with the power cut somewhere in most cases; then start and work again.

        Raises:
            PowerCut: Nobody wants the work done any more.
        """
        if self._chance.random() < 0.8:
            # A share takes about 50 points, its removal 11.
            self._fuse.left = self._chance.randrange(self._chance.choice((12, 50, 80)))
        try:
            async with self.rig.locks.hold(uid):
                await work()
        except PowerCut:
            await self.start(may_fail=self._chance.random() < 0.3)
            if may_end and self._chance.random() < 0.3:
                # The pod was deleted meanwhile, or runs already: nobody asks again.
                if uid not in self.answered:
                    await self.delete(uid)
                    del self.known[uid]
                    found = await self.rig.ledger.find(uid)
                    if found is not None and found.ready:  # since an earlier boot
                        assert await self.rig.recovery.sweep()
                raise
            async with self.rig.locks.hold(uid):
                await work()
        self._fuse.left = None

    # --- what must hold

    async def check(self) -> None:
        """Compare disk and ledger with what the kubelet was told."""
        records = {record.binding.claim_uid: record for record in await self.rig.ledger.records()}
        ready = {uid for uid, record in records.items() if record.ready}
        assert self.answered <= ready
        assert ready <= set(self.known), "only what the kubelet will have unprepared"
        files = {
            name.partition("-claim-")[2].removesuffix(".json") for name in self.rig.claim_files()
        }
        assert self.answered <= files <= set(self.known)
        assert set(self.rig.claim_directories()) <= set(self.known)
        names = [
            f"{spec['kind']}={device['name']}"
            for spec in self.rig.cdi_files().values()
            for device in spec["devices"]
        ]
        assert len(set(names)) == len(names), "no CDI name twice"
        roots = (self._base / "state", self._base / "cdi")
        assert [path for root in roots for path in root.rglob("*.tmp")] == []
        self._check_sums([record.binding.devices for record in records.values()])
        self._check_instances(records)
        for uid in self.answered:
            for request, devices in records[uid].binding.requests.items():
                path = self.rig.files.directories.grant_path(uid, request)
                assert path.exists() == any(device.controlled for device in devices)

    def _check_instances(self, records: Mapping[str, ClaimRecord]) -> None:
        """Compare what exists on the divided card with what was answered, and with its owners."""
        present = self._card.cards[DIVIDED.uuid]
        assert present[0] == OTHERS
        places = {(each.start, each.size) for each in present[1:]}
        held = {
            uid: {(d.mig.start, d.mig.size) for d in record.binding.devices if d.mig is not None}
            for uid, record in records.items()
        }
        assert len(places) == len(present) - 1
        assert places <= {place for owned in held.values() for place in owned}, "without owner"
        assert {place for uid in self.answered for place in held[uid]} <= places
        uuids = {
            device.mig.uuid
            for uid in self.answered
            for device in records[uid].binding.devices
            if device.mig is not None
        }
        assert uuids <= {part.uuid for each in present for part in each.parts}

    def _check_sums(self, bindings: list[Any]) -> None:
        for number in range(CARDS):
            name = name_device(make_gpu(number).uuid)
            devices = [
                device
                for binding in bindings
                for device in binding
                if device.device == name and not device.admin
            ]
            assert sum(device.consumed_memory_mib for device in devices) <= MEMORY_MIB
            assert sum(device.consumed_cores for device in devices) <= 100
            assert sum(device.consumed_slots for device in devices) <= SLOTS
            assert len(devices) <= 1 or not any(device.exclusive for device in devices)

    async def finish(self) -> None:
        """End every pod, start once more, and find nothing left."""
        for uid in list(self.known):
            await self.unprepare(uid)
        await self.start()
        assert await self.rig.ledger.records() == []
        assert self.rig.claim_files() == []
        assert self.rig.claim_directories() == []
        assert self._card.cards[DIVIDED.uuid] == (OTHERS,)
        state = self._base / "state"
        await self.check()
        assert len(list(state.glob("ledger-*.db"))) == 1
        await self.end()


ACTIONS: Final = ("create",) * 4 + ("again", "unprepare", "unprepare", "restart", "reboot", "force")


async def live(base: Path, cluster: FakeCluster, seed: int) -> list[Point]:
    """Live through one random sequence; return the points at which the power was cut."""
    chance = random.Random(seed)  # noqa: S311 - to be repeated
    node = Node(base, cluster, chance)
    await node.start()
    for _ in range(chance.randrange(3, 8)):
        action = chance.choice(ACTIONS)
        uid = chance.choice(sorted(node.known)) if node.known else ""
        if action == "restart":
            await node.start(may_fail=chance.random() < 0.5)
        elif action == "reboot":
            await node.reboot()
        elif action == "create" or not uid:
            await node.create()
        elif action == "again":
            await node.prepare(uid)
        elif action == "unprepare":
            await node.unprepare(uid)
        else:
            await node.delete(uid)
        await node.check()
    await node.finish()
    return node.cuts
