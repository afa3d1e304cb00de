"""Makes disk and ledger agree: at start, every few seconds, and after a reboot.

The kubelet does not call Prepare again for a container that restarts, so a CDI file that is lost
must come back without being asked for. What nobody was told of is undone. A claim that is ready is
never removed on our own account while this boot's containers may run, even when the API server no
longer has it: the kubelet calls Unprepare when they have ended.

Another instance may be at work. A claim is touched only under its lock, and only as it is found
then: an intent whose lock is held is somebody's who lives. CDI files are rendered again only by
the instance that leads, and what belongs to no claim is removed only by one that is alone.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Final, TypeVar

import structlog

from hami_dra.contract.errors import HamiDraError
from hami_dra.kube import ApiError
from hami_dra.kubeletplugin.locks import ClaimLocks
from hami_dra.kubeletplugin.publisher import always_lead
from hami_dra.node.claimspec import CLAIM_PREFIX, name_file
from hami_dra.node.copies import read_copy
from hami_dra.node.intact import IntactClaims
from hami_dra.node.ledger import ClaimRecord, Ledger
from hami_dra.node.libfile import remove_unused
from hami_dra.node.metadata import METADATA_PREFIX
from hami_dra.node.partitions import has_instances
from hami_dra.node.preparer import ClaimFiles, Preparer
from hami_dra.service.clock import Clock

_log = structlog.get_logger(__name__)

_SWEEP_SECONDS: Final = 60.0
_AT_ONCE: Final = 4
"""Claims whose files are gone through in one job: each job wakes three threads, and the files of a
Prepare wait for it, a millisecond."""

T = TypeVar("T")


@contextmanager
def always_alone() -> Iterator[bool]:
    """Say that there is no other instance."""
    yield True


@dataclass(frozen=True, slots=True)
class RecoveryReport:
    """What a start found.

    Attributes:
        kept: Prepared claims.
        restored: Claims put back into a ledger that was lost.
        undone: Intents and leftovers that were removed.
    """

    kept: int
    restored: int
    undone: int


class Recovery:
    """Repairs what belongs to claims.

    Args:
        ledger: What is prepared.
        files: What is on disk.
        preparer: Removes claims.
        locks: Shared with the service.
        boot_id: Of the running kernel.
        executor: The one thread that touches `files`.
        on_cdi: Called with ``None`` while the CDI directory is writable, else with the reason.
        on_state: The same for the state directory.
        clock: Tells how old changes of files are.
        leads: Whether this instance renders CDI files again.
        alone: Tells whether there is no other instance, and keeps others away meanwhile. Blocking.
        sweep_more: Removes more of what dead instances left; called while alone. Blocking.
        has_seen: Whether somebody has seen a claim at the API server a moment ago.
        on_repair: Called after files of claims were gone through: directories may be others.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        files: ClaimFiles,
        preparer: Preparer,
        locks: ClaimLocks,
        boot_id: str,
        executor: ThreadPoolExecutor,
        on_cdi: Callable[[str | None], None],
        on_state: Callable[[str | None], None],
        clock: Clock,
        leads: Callable[[], Awaitable[bool]] = always_lead,
        alone: Callable[[], AbstractContextManager[bool]] = always_alone,
        sweep_more: Callable[[], object] = lambda: None,
        has_seen: Callable[[str], bool] = lambda _: False,
        on_repair: Callable[[], None] = lambda: None,
    ) -> None:
        self._ledger = ledger
        self._files = files
        self._preparer = preparer
        self._locks = locks
        self._boot_id = boot_id
        self._executor = executor
        self._on_cdi = on_cdi
        self._on_state = on_state
        self._leads = leads
        self._alone = alone
        self._sweep_more = sweep_more
        self._has_seen = has_seen
        self._on_repair = on_repair
        self._missed = asyncio.Event()
        self._intact = IntactClaims(files, clock)
        self._known_gone: set[str] = set()

    async def start(self) -> RecoveryReport:
        """Bring everything into order before the first call can arrive. Idempotent.

        Raises:
            RetryError: The ledger cannot be used at the moment.
        """
        records = await self._ledger.records()
        kept = {record.binding.claim_uid for record in records if record.ready}
        for record in records:
            if record.ready and record.boot_id != self._boot_id:
                await self._empty_regions(record.binding.claim_uid)
        undone = 0
        for uid in await self._list_doubtful(kept):
            undone += await self._undo(uid)
        await self.repair()
        await self.tidy()
        report = RecoveryReport(kept=len(kept), restored=self._ledger.restored, undone=undone)
        _log.info("recovery.done", kept=report.kept, restored=report.restored, undone=report.undone)
        return report

    async def _empty_regions(self, uid: str) -> None:
        """Empty a claim's regions: their processes died with the last boot, so did their clocks."""
        async with self._locks.try_hold(uid) as held:
            record = await self._ledger.find(uid) if held else None
            if record is None or not record.ready or record.boot_id == self._boot_id:
                return
            try:
                await self._in_thread(self._files.directories.clear_regions, record.binding)
            except HamiDraError as error:
                _log.warning("recovery.regions_kept", uid=uid, error=str(error))

    async def _list_doubtful(self, kept: set[str]) -> list[str]:
        """Return every claim of which there is something, but that is not known to be ready."""
        found = {record.binding.claim_uid for record in await self._ledger.records()}
        found |= set(await self._in_thread(self._files.directories.uids))
        found |= {
            name.removeprefix(prefix)
            for name in await self._in_thread(self._files.store.names)
            for prefix in (CLAIM_PREFIX, METADATA_PREFIX)
            if name.startswith(prefix)
        }
        return sorted(found - kept)

    async def _undo(self, uid: str) -> bool:
        """Remove what there is of a claim, if nobody works on it and the kubelet has no answer."""
        async with self._locks.try_hold(uid) as held:
            if not held:
                return False
            record = await self._ledger.find(uid)
            if (record is not None and record.ready) or await self._is_unreadable(uid, record):
                return False
            try:
                await self._preparer.forget(uid)
            except HamiDraError as error:
                _log.warning("recovery.leftover", uid=uid, error=str(error))
                return False
        return True

    async def _is_unreadable(self, uid: str, record: ClaimRecord | None) -> bool:
        """Whether a claim is prepared for all we know, but its copy is of another version.

        Its containers may be running on these very files; kubelet's next Prepare puts it into the
        ledger again, and its Unprepare removes it.
        """
        if record is not None or name_file(uid) not in await self._in_thread(
            self._files.store.names
        ):
            return False
        raw = await self._in_thread(self._files.directories.read_record, uid)
        # A power cut may leave one that is empty, or all zeros, of a claim that was never answered.
        return raw is not None and bool(raw.strip(b"\0")) and read_copy(uid, raw) is None

    async def tidy(self) -> None:
        """Remove what belongs to no claim, while no other instance can be using it.

        Raises:
            RetryError: The ledger cannot be used at the moment.
        """
        used = {record.library for record in await self._ledger.records()}
        used.add(str(self._files.installed.library))

        def remove() -> None:
            with self._alone() as alone:
                if alone:
                    self._files.store.sweep_temporaries()
                    remove_unused(self._files.settings.state_dir, used)
                    self._sweep_more()

        try:
            await self._in_thread(remove)
        except OSError as error:
            _log.warning("tidy.failed", error=str(error))

    async def repair(self) -> int:
        """Write again what is missing of prepared claims; return how many needed it.

        Claims whose files nobody touched since the last time are seen at a glance.

        Raises:
            RetryError: The ledger cannot be used at the moment.
        """
        try:
            await self._ledger.keep_reserve()
        except HamiDraError as error:
            self._on_state(str(error))
        else:
            self._on_state(None)
        try:
            await self._in_thread(self._files.store.probe)
        except HamiDraError as error:
            self._on_cdi(str(error))
            return 0
        self._on_cdi(None)
        if not await self._leads():
            return 0  # two versions would write their own files in turn
        try:
            await self._in_thread(self._files.base.repair)
        except HamiDraError as error:
            _log.warning("repair.cards_not_written", error=str(error))
        records = await self._ledger.records()
        others = await self._in_thread(self._intact.list_others, records)
        repaired = await self._repair_claims(others)
        if others:
            self._on_repair()
        return repaired

    async def _repair_claims(self, records: Sequence[ClaimRecord]) -> int:
        """Go through these claims' files; return how many needed it."""
        repaired = 0
        for first in range(0, len(records), _AT_ONCE):
            uids = [record.binding.claim_uid for record in records[first : first + _AT_ONCE]]
            async with AsyncExitStack() as locks:
                # A claim that is worked on is being repaired, or removed.
                hold = locks.enter_async_context
                held = [uid for uid in uids if await hold(self._locks.try_hold(uid))]
                found = await asyncio.gather(*map(self._ledger.find, held))
                wanted = [
                    record
                    for record in found
                    if record is not None and record.ready and not self._is_outlived(record)
                ]
                outcomes = await self._in_thread(self._repair_all, wanted) if wanted else {}
            for uid, outcome in outcomes.items():
                if isinstance(outcome, HamiDraError):
                    _log.warning("repair.failed", uid=uid, error=str(outcome))
                elif outcome:
                    repaired += 1
                    _log.info("repair.written", uid=uid, file=name_file(uid))
        return repaired

    def _repair_all(self, records: Iterable[ClaimRecord]) -> dict[str, bool | HamiDraError]:
        """Do as `_repair_files`; return by UID whether a CDI file was written, or why not."""
        outcomes: dict[str, bool | HamiDraError] = {}
        for record in records:
            try:
                outcomes[record.binding.claim_uid] = self._repair_files(record)
            except HamiDraError as error:
                outcomes[record.binding.claim_uid] = error
        return outcomes

    def _repair_files(self, record: ClaimRecord) -> bool:
        """Write again what is missing of a claim; return whether that was a CDI file. Blocking."""
        look = self._intact.look(record)
        self._files.directories.sweep_temporaries(record.binding.claim_uid)
        self._files.directories.ensure(record.binding)
        changed = self._files.metadata.write_spec(record.binding)
        changed = self._files.write_spec(record) or changed
        self._intact.keep(look)
        return changed

    def _is_outlived(self, record: ClaimRecord) -> bool:
        """Whether a claim's MIG instances ended with the last boot: others have their numbers."""
        return record.boot_id != self._boot_id and has_instances(record.binding)

    async def repair_forever(self, interval_seconds: float) -> None:
        """Repair again and again until cancelled."""
        while True:
            await asyncio.sleep(interval_seconds)
            try:
                await self.repair()
            except HamiDraError as error:
                _log.warning("repair.failed", error=str(error))

    async def sweep(self) -> int:
        """Remove claims that the API server no longer has and nobody can use; return how many.

        The API server is asked only for those that nobody has seen there a moment ago.

        Raises:
            HamiDraError: The API server or the ledger does not answer.
        """
        removed = 0
        for record in await self._ledger.records():
            uid = record.binding.claim_uid
            if self._has_seen(uid) or not await self._preparer.is_gone(record.binding):
                continue
            if await self._preparer.bury(uid):
                _log.info("sweep.removed", uid=uid, claim=_label(record.binding))
                removed += 1
            elif record.boot_id == self._boot_id and uid not in self._known_gone:
                self._known_gone.add(uid)
                _log.warning(
                    "sweep.kept",
                    uid=uid,
                    claim=_label(record.binding),
                    reason="the claim is gone, but its containers may still run on this node; the "
                    "kubelet calls Unprepare when they have ended, and a reboot clears it",
                )
        return removed

    async def sweep_forever(self) -> None:
        """Sweep every minute, and when a claim is missed, until cancelled."""
        while True:
            self._missed.clear()
            try:
                await self.sweep()
                await self.tidy()
            except (ApiError, HamiDraError) as error:
                _log.warning("sweep.failed", error=str(error))
            with suppress(TimeoutError):
                async with asyncio.timeout(_SWEEP_SECONDS):
                    await self._missed.wait()

    def note_missing(self) -> None:
        """Sweep soon: the API server seems to have a claim no more."""
        self._missed.set()

    async def _in_thread(self, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *arguments)


def _label(binding: object) -> str:
    return f"{getattr(binding, 'namespace', '')}/{getattr(binding, 'name', '')}"
