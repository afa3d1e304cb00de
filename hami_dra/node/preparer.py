"""Prepare and Unprepare of one claim: verify, plan, write down, do, write down that it is done.

Order of Prepare: intent in the ledger, MIG instances, record and directories, metadata, CDI files,
"ready" in the ledger, answer. A crash after any of them leaves either an intent that nobody was
told of, which the next start undoes, or a claim that the next Prepare finds and repairs. Order of
Unprepare: CDI files (no container can start with them any more), MIG instances, directories,
ledger. All of it but MIG instances is done by one thread in one go, and claims that come together
wait for the disk together (docs/decisions/0022-durable-together.md).
"""

import asyncio
import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog

from hami_dra.cdi.durable import Disk, DurableWork, Job, Writes
from hami_dra.cdi.store import CdiStore
from hami_dra.contract.errors import HamiDraError, RetryError, UserError
from hami_dra.contract.names import CDI_KIND_CLAIM
from hami_dra.kube import Api, ApiError
from hami_dra.kube.errors import NotFoundError
from hami_dra.kube.objects import CLAIMS
from hami_dra.kubeletplugin.locks import ClaimLocks
from hami_dra.kubeletplugin.service import ClaimRef, PreparedDevice
from hami_dra.node.basedevices import BaseDevices
from hami_dra.node.claimparts import ClaimParts, list_capacities
from hami_dra.node.claimspec import name_devices, name_file, render_claim
from hami_dra.node.copies import read_copy
from hami_dra.node.ledger import (
    CardTakenError,
    Change,
    ClaimRecord,
    Ledger,
    describe_end,
    describe_intent,
    describe_removal,
    encode_record,
)
from hami_dra.node.libfile import InstalledLibrary
from hami_dra.node.metadata import MetadataFiles, name_metadata_ids
from hami_dra.node.partitions import Partitions, has_instances
from hami_dra.node.settings import NodeSettings
from hami_dra.node.sharedir import ShareDirectories
from hami_dra.policy.binding import Binding, bind_claim
from hami_dra.policy.devices import CardCapacity, CardOffer, GpuFacts
from hami_dra.policy.limits import Settled, read_wish, settle_limits

PREPARE_STEPS: Final = (
    "ledger-intent",
    "record",
    "directories",
    "metadata",
    "cdi",
    "ledger-ready",
)
UNPREPARE_STEPS: Final = ("unprepare-cdi", "unprepare-directories", "unprepare-ledger")
CHANGE_STEPS: Final = ("limits-record", "limits-ledger", "limits-grant", "limits-metadata")

_READS_AT_ONCE: Final = 4
"""Claims that are read at a time: the API server answers this many sooner than this process can
take the answers, and each connection with TLS holds memory for a minute."""

_TURNS: Final = 8
"""Claims that are worked on at a time: of many that come at once the first are done first, and
none of them is half done while the last one begins."""

Step = Callable[[str], None]
T = TypeVar("T")
Steps = Generator[Change | None, None, T]
"""See `hami_dra.cdi.durable.Job`."""


def no_step(_: str) -> None:
    """Do nothing after a step."""


@dataclass(frozen=True, slots=True)
class ClaimFiles:
    """Everything on disk that belongs to claims. Blocking."""

    store: CdiStore
    directories: ShareDirectories
    base: BaseDevices
    installed: InstalledLibrary
    settings: NodeSettings

    @property
    def metadata(self) -> MetadataFiles:
        """What containers may read about their devices."""
        return MetadataFiles(self.store, self.directories)

    def render(self, record: ClaimRecord) -> tuple[dict[str, Any], list[str]]:
        """Return a claim's CDI specification and the host paths in it."""
        return render_claim(
            record,
            self.directories,
            preload=self.installed.preload,
            inject_paths=self.settings.inject_paths,
            procfs=self.settings.procfs,
        )

    def list_paths(self, record: ClaimRecord) -> tuple[list[str], list[str]]:
        """Return the paths whose content is a claim's, and others that it needs to be there.

        Raises:
            RetryError: A MIG instance of the claim does not exist.
        """
        uid = record.binding.claim_uid
        owned = [
            *self.directories.list_paths(record.binding),
            *map(str, self.metadata.list_paths(record.binding)),
            str(self.store.find_path(name_file(uid))),
        ]
        _, referred = self.render(record)
        return owned, [path for path in referred if path not in owned]

    def write_spec(self, record: ClaimRecord, writes: Writes | None = None) -> bool:
        """Write a claim's CDI file, see `CdiStore.write`; return whether it changed.

        Raises:
            RetryError: A path that it refers to does not exist; names it.
            CdiDirectoryError: The directory is not writable.
        """
        spec, paths = self.render(record)
        for path in paths:
            if not os.path.exists(path):  # noqa: PTH110 - at every Prepare, of every path
                raise RetryError(f"{path}: no such file, but the claim's containers need it")
        return self.store.write(name_file(record.binding.claim_uid), spec, writes=writes)

    def write_copy(self, record: ClaimRecord) -> None:
        """Write the copy of a claim's row, unless it says so already, perhaps and more.

        Raises:
            RetryError: It cannot be written at the moment.
        """
        uid = record.binding.claim_uid
        if self.read_copy(uid) != record:
            self.directories.write_record(uid, encode_record(record))

    def read_copy(self, uid: str) -> ClaimRecord | None:
        """Return the copy of a claim's row, if there is one that can be read."""
        raw = self.directories.read_record(uid)
        return None if raw is None else read_copy(uid, raw)

    def choose_library(self, known: ClaimRecord | None) -> str:
        """Return the library for a claim: the one its containers have already, if any."""
        if known is not None and Path(known.library).is_file():
            return known.library
        return str(self.installed.library)


class Preparer:
    """Does the kubelet's work on claims. The caller holds the claim's lock.

    Args:
        api: Needs get on resourceclaims.
        ledger: What is prepared.
        files: What is on disk.
        offers: Returns this node's cards by device name, as they are published now.
        boot_id: Of the running kernel.
        settings: The node's.
        executor: The one thread that touches `files` and `ledger`.
        locks: Whose lock of the claim the caller holds.
        partitions: Makes the MIG instances of claims.
        disk: Waits for `files`.
        step: Called after each step with its name (`PREPARE_STEPS`, `UNPREPARE_STEPS`, and
            for claims with MIG instances those of `partitions`).
    """

    def __init__(
        self,
        *,
        api: Api,
        ledger: Ledger,
        files: ClaimFiles,
        offers: Callable[[], Mapping[str, CardOffer]],
        boot_id: str,
        settings: NodeSettings,
        executor: ThreadPoolExecutor,
        locks: ClaimLocks,
        partitions: Partitions,
        disk: Disk | None = None,
        step: Step = no_step,
    ) -> None:
        self._api = api
        self._locks = locks
        self._ledger = ledger
        self._files = files
        self._offers = offers
        self._boot_id = boot_id
        self._settings = settings
        self._executor = executor
        self._parts = ClaimParts(partitions, ledger, offers=offers, step=step)
        self._durable = DurableWork(executor, disk, together=ledger.change_together)
        self._turns = asyncio.Semaphore(_TURNS)
        self._reads = asyncio.Semaphore(_READS_AT_ONCE)
        self._step = step

    async def prepare(self, claim: ClaimRef) -> tuple[PreparedDevice, ...]:
        """Make a claim's devices usable; see `ClaimHandler.prepare`."""
        async with self._turns:
            plan, known = await self._plan(claim)
            record = plan.record
            if not has_instances(record.binding):
                base_ids = await self._make_room(partial(self._make_all, plan))
                await self._check_whole(record.binding, known)
                return _list_prepared(record.binding, base_ids)
        # Instances take seconds to be made, and nobody's turn waits for that.
        base_ids = await self._make_room(partial(self._intend, plan))
        record = await self._parts.create(record, known)
        await self._durable.do(partial(self._complete, replace(plan, record=record)))
        return _list_prepared(record.binding, base_ids)

    async def _plan(self, claim: ClaimRef) -> "tuple[_Plan, ClaimRecord | None]":
        """Return what is to be made for a claim, and what was before."""
        (stored, read_ms), known = await asyncio.gather(
            self._read_claim(claim), self._ledger.find(claim.uid)
        )
        users = (stored.get("status") or {}).get("reservedFor") or ()
        structlog.contextvars.bind_contextvars(
            pods=[user.get("name") for user in users],
            read_ms=read_ms,  # of the call's time, the API server's
        )
        await self._parts.refresh()
        binding = await self._parts.plan(self.bind(stored, known).binding, known)
        library = self._files.choose_library(known)
        offers = self._offers()
        plan = _Plan(
            record=ClaimRecord(binding=binding, library=library, boot_id=self._boot_id),
            gpus=_list_gpus(offers),
            capacities=list_capacities(binding, offers, self._parts.index()),
        )
        return plan, known

    async def _make_room(self, job: Job[list[str]]) -> list[str]:
        """Do a job that takes cards; if one is taken, first by claims that nobody can be using.

        Raises:
            CardTakenError: The rest of a card is others'; says which of them are gone from the API
                server, and are waited for.
        """
        try:
            return await self._durable.do(job)
        except CardTakenError as error:
            buried, ending = 0, []
            for uid in error.holders:
                holder = await self._find_dead(uid)
                if holder is not None and await self.bury(uid):
                    buried += 1
                elif holder is not None:
                    ending.append(f"{holder.namespace}/{holder.name}")
            if not buried:
                if not ending:
                    raise
                raise RetryError(
                    f"{error}; {', '.join(ending)} no longer exist, but their containers may run "
                    "on this node until the kubelet has had them unprepared"
                ) from error
            return await self._durable.do(job)

    async def _check_whole(self, binding: Binding, known: ClaimRecord | None) -> None:
        try:
            self._parts.check_whole(binding)
        except HamiDraError:
            if known is None:
                await self.forget(binding.claim_uid)
            raise

    async def _find_dead(self, uid: str) -> Binding | None:
        """Return a recorded claim that the API server no longer has."""
        record = await self._ledger.find(uid)
        try:
            dead = record is not None and await self.is_gone(record.binding)
        except ApiError:
            return None  # it may be well; the next try asks again
        return record.binding if record is not None and dead else None

    def bind(self, claim: Mapping[str, Any], known: ClaimRecord | None) -> Settled:
        """Understand a claim as it is stored, with the limits that its annotation asks for.

        Args:
            claim: A ResourceClaim.
            known: What was prepared of it before.

        Raises:
            UserError: See `bind_claim`.
            RetryError: See `bind_claim`.
        """
        granted = bind_claim(
            claim, self._offers(), pool=self._settings.node_name, parts=self._parts.index()
        )
        return settle_limits(granted, read_wish(claim), known.binding if known else None)

    async def change(self, record: ClaimRecord) -> None:
        """Put other limits into force for a claim that is prepared, under running programs.

        The ledger comes before what follows from it, and after the copy that stands in for it:
        whatever ends this process, the next one sees what is left to do.

        Args:
            record: The claim's, with nothing changed but limits.

        Raises:
            RetryError: A file or the ledger cannot be written at the moment.
        """
        uid = record.binding.claim_uid
        await self._in_thread(
            self._files.directories.write_record, uid, encode_record(replace(record, ready=True))
        )
        self._step("limits-record")
        await self._ledger.begin(record, {})
        self._step("limits-ledger")
        await self._in_thread(self._files.directories.ensure, record.binding)
        self._step("limits-grant")
        await self.refresh_metadata(record.binding)
        self._step("limits-metadata")

    async def refresh_metadata(self, binding: Binding) -> None:
        """Bring what containers may read of their devices up to date. Idempotent.

        Raises:
            RetryError: A file cannot be written at the moment.
        """
        await self._in_thread(self._files.metadata.write, binding, _list_gpus(self._offers()))

    async def unprepare(self, claim: ClaimRef) -> None:
        """Undo it, from what is on this node alone; see `ClaimHandler.unprepare`."""
        known = await self._forget(claim.uid)
        if known is not None:
            devices = [device.device for device in known.binding.devices]
            structlog.contextvars.bind_contextvars(devices=devices)

    async def forget(self, uid: str) -> None:
        """Remove everything that belongs to a claim. Idempotent; an unknown claim is no error."""
        await self._forget(uid)

    async def _forget(self, uid: str) -> ClaimRecord | None:
        """Do as `forget`; return what was known of the claim."""
        known = await self._durable.do(partial(self._remove_unless_divided, uid))
        if known is not None:
            if has_instances(known.binding):
                await self._durable.do(partial(self._remove_specs_alone, uid))
                await self._parts.destroy(known.binding)
                await self._durable.do(partial(self._remove_rest, uid))
            self._parts.disown(known.binding)
        return known

    async def bury(self, uid: str) -> bool:
        """Forget a claim that is gone, unless its containers may run or somebody works on it.

        Returns whether nothing is left of it.
        """
        async with self._locks.try_hold(uid) as held:
            record = await self._ledger.find(uid) if held else None
            if record is None:
                return held
            if record.ready and record.boot_id == self._boot_id:
                return False
            await self.forget(uid)
        return True

    async def is_gone(self, binding: Binding) -> bool:
        """Whether the API server says that a claim no longer exists (by UID).

        Raises:
            ApiError: It does not answer.
        """
        try:
            found = await self._api.get(CLAIMS, binding.name, namespace=binding.namespace)
        except NotFoundError:
            return True
        return bool(found["metadata"].get("uid") != binding.claim_uid)

    async def _read_claim(self, ref: ClaimRef) -> tuple[dict[str, Any], float]:
        """Return a claim as the API server has it, and how many milliseconds it took to answer."""
        async with self._reads:
            began = time.monotonic()
            try:
                claim = await self._api.get(CLAIMS, ref.name, namespace=ref.namespace)
            except NotFoundError as error:
                raise UserError(f"claim {ref.namespace}/{ref.name} does not exist") from error
            except ValueError as error:
                raise UserError(f"claim {ref.namespace}/{ref.name}: {error}") from error
            read_ms = round((time.monotonic() - began) * 1000, 1)
        uid = claim.get("metadata", {}).get("uid")
        if uid != ref.uid:
            raise UserError(
                f"claim {ref.namespace}/{ref.name} was replaced: its metadata.uid is {uid}, the "
                f"kubelet asks for {ref.uid}"
            )
        return claim, read_ms

    # From here on, jobs for the thread (`DurableWork`).

    def _make_all(self, plan: "_Plan", writes: Writes) -> Steps[list[str]]:
        base_ids = yield from self._intend(plan, writes)
        yield from self._complete(plan, writes)
        return base_ids

    def _intend(self, plan: "_Plan", _: Writes) -> Steps[list[str]]:
        """Record what is to be made, and return the CDI ids of the cards: no record without them.

        The card file is waited for where it is written, which is hardly ever.
        """
        record, base = plan.record, self._files.base
        base_ids = [base.resolve(device, plan.gpus) for device in record.binding.devices]
        yield describe_intent(record, plan.capacities)
        self._step("ledger-intent")
        return base_ids

    def _complete(self, plan: "_Plan", writes: Writes) -> Steps[None]:
        files, record, binding = self._files, plan.record, plan.record.binding
        files.write_copy(replace(record, ready=True))
        self._step("record")
        files.directories.ensure(binding)
        self._step("directories")
        files.metadata.write(binding, plan.gpus)
        self._step("metadata")
        files.metadata.write_spec(binding, writes)
        files.write_spec(record, writes)
        yield from self._wait()
        self._step("cdi")
        yield describe_end(binding.claim_uid, self._boot_id)
        self._step("ledger-ready")

    def _remove_unless_divided(self, uid: str, writes: Writes) -> Steps[ClaimRecord | None]:
        """Remove a claim, unless MIG instances have to end in between; return its record."""
        known = self._ledger.look_up(uid) or self._files.read_copy(uid)
        if known is None or not has_instances(known.binding):
            self._remove_specs(uid, writes)
            yield from self._remove_rest(uid, writes)
        return known

    def _remove_specs_alone(self, uid: str, writes: Writes) -> Steps[None]:
        self._remove_specs(uid, writes)
        yield from self._wait()

    def _remove_specs(self, uid: str, writes: Writes) -> None:
        self._files.store.remove(name_file(uid), writes)
        self._files.metadata.remove_spec(uid, writes)
        self._step("unprepare-cdi")

    def _remove_rest(self, uid: str, _: Writes) -> Steps[None]:
        self._files.directories.remove(uid)
        self._step("unprepare-directories")
        yield from self._wait(describe_removal(uid))
        self._step("unprepare-ledger")

    def _wait(self, change: Change | None = None) -> Steps[None]:
        """Wait for the CDI directory, then for a change of the ledger."""
        try:
            yield change
        except OSError as error:
            raise self._files.store.explain(error) from error

    async def _in_thread(self, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *arguments)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is to be made for a claim.

    Attributes:
        record: Of the ledger.
        gpus: The node's cards by device name.
        capacities: What there is of each device of the claim.
    """

    record: ClaimRecord
    gpus: Mapping[str, GpuFacts]
    capacities: Mapping[str, CardCapacity]


def _list_prepared(binding: Binding, base_ids: Sequence[str]) -> tuple[PreparedDevice, ...]:
    return tuple(
        PreparedDevice(
            request=device.request,
            pool=device.pool,
            device=device.device,
            cdi_ids=(f"{CDI_KIND_CLAIM}={name}", base_id, *metadata_ids),
            share_id=device.share_id,
        )
        for name, device, base_id, metadata_ids in zip(
            name_devices(binding),
            binding.devices,
            base_ids,
            name_metadata_ids(binding),
            strict=True,
        )
    )


def _list_gpus(offers: Mapping[str, CardOffer]) -> dict[str, GpuFacts]:
    return {name: offer.gpu for name, offer in offers.items()}


def read_boot_id(path: Path = Path("/proc/sys/kernel/random/boot_id")) -> str:
    """Return what tells this boot from every other.

    Raises:
        RetryError: /proc does not say.
    """
    try:
        return path.read_text().strip()
    except OSError as error:
        raise RetryError(f"{path} cannot be read: {error}") from error
