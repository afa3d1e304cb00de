"""Makes disk and ledger agree: at start, every few seconds, and after a reboot.

The kubelet does not call Prepare again for a container that restarts, so a CDI file that is lost
must come back without being asked for. What nobody was told of is undone. A claim that is ready is
never removed on our own account while this boot's containers may run, even when the API server no
longer has it: the kubelet calls Unprepare when they have ended.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec
import structlog

from hami_dra.contract.errors import HamiDraError
from hami_dra.kube import ApiError
from hami_dra.kubeletplugin.locks import ClaimLocks
from hami_dra.node.claimspec import CLAIM_PREFIX, name_file
from hami_dra.node.ledger import Ledger, decode_record
from hami_dra.node.libfile import remove_unused
from hami_dra.node.preparer import ClaimFiles, Preparer

_log = structlog.get_logger(__name__)

_SWEEP_SECONDS: Final = 60.0

T = TypeVar("T")


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
    ) -> None:
        self._ledger = ledger
        self._files = files
        self._preparer = preparer
        self._locks = locks
        self._boot_id = boot_id
        self._executor = executor
        self._on_cdi = on_cdi
        self._known_gone: set[str] = set()

    async def start(self) -> RecoveryReport:
        """Bring everything into order before the first call can arrive. Idempotent."""
        await self._in_thread(self._files.store.sweep_temporaries)
        restored = await self._restore() if self._ledger.empty_start else 0
        kept: set[str] = set()
        doomed: set[str] = set()
        for record in await self._ledger.records():
            uid = record.binding.claim_uid
            (kept if record.ready else doomed).add(uid)
            if record.ready and record.boot_id != self._boot_id:
                # Its processes died with the last boot, and so did the clocks in its regions.
                await self._in_thread(self._files.directories.clear_regions, record.binding)
        doomed |= set(await self._in_thread(self._files.directories.uids)) - kept
        doomed |= {
            name.removeprefix(CLAIM_PREFIX)
            for name in await self._in_thread(self._files.store.names)
            if name.startswith(CLAIM_PREFIX)
        } - kept
        for uid in sorted(doomed):
            try:
                await self._preparer.forget(uid)
            except HamiDraError as error:
                _log.warning("recovery.leftover", uid=uid, error=str(error))
        await self.repair()
        used = {record.library for record in await self._ledger.records()}
        used.add(str(self._files.installed.library))
        await self._in_thread(remove_unused, self._files.settings.state_dir, used)
        report = RecoveryReport(kept=len(kept), restored=restored, undone=len(doomed))
        _log.info("recovery.done", kept=report.kept, restored=restored, undone=report.undone)
        return report

    async def repair(self) -> int:
        """Write again what is missing of prepared claims; return how many needed it."""
        try:
            await self._in_thread(self._files.store.probe)
        except HamiDraError as error:
            self._on_cdi(str(error))
            return 0
        self._on_cdi(None)
        try:
            await self._in_thread(self._files.base.repair)
        except HamiDraError as error:
            _log.warning("repair.cards_not_written", error=str(error))
        repaired = 0
        for listed in await self._ledger.records():
            uid = listed.binding.claim_uid
            async with self._locks.hold(uid):
                record = await self._ledger.find(uid)
                if record is None or not record.ready:
                    continue
                try:
                    await self._in_thread(self._files.directories.ensure, record.binding)
                    changed = await self._in_thread(self._files.write_spec, record)
                except HamiDraError as error:
                    _log.warning("repair.failed", uid=uid, error=str(error))
                    continue
            if changed:
                repaired += 1
                _log.info("repair.written", uid=uid, file=name_file(uid))
        return repaired

    async def repair_forever(self, interval_seconds: float) -> None:
        """Repair again and again until cancelled."""
        while True:
            await asyncio.sleep(interval_seconds)
            try:
                await self.repair()
            except HamiDraError as error:
                _log.warning("repair.failed", error=str(error))

    async def sweep(self) -> int:
        """Remove claims of earlier boots that the API server no longer has; return how many.

        Raises:
            HamiDraError: The API server or the ledger does not answer.
        """
        removed = 0
        for record in await self._ledger.records():
            uid = record.binding.claim_uid
            if not record.ready or not await self._preparer.is_gone(record.binding):
                continue
            if record.boot_id != self._boot_id:
                async with self._locks.hold(uid):
                    await self._preparer.forget(uid)
                _log.info("sweep.removed", uid=uid, claim=_label(record.binding))
                removed += 1
            elif uid not in self._known_gone:
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
        """Sweep again and again until cancelled."""
        while True:
            try:
                await self.sweep()
            except (ApiError, HamiDraError) as error:
                _log.warning("sweep.failed", error=str(error))
            await asyncio.sleep(_SWEEP_SECONDS)

    async def _restore(self) -> int:
        """Fill a new ledger from the records that lie beside the claims' directories."""
        files = self._files
        present = set(await self._in_thread(files.store.names))
        restored = 0
        for uid, raw in await self._in_thread(lambda: list(files.directories.read_records())):
            try:
                record = decode_record(raw)
            except msgspec.MsgspecError as error:
                _log.warning("recovery.record_unreadable", uid=uid, error=str(error))
                continue
            # Without its CDI file no container was ever started on it in this boot.
            if record.binding.claim_uid == uid and name_file(uid) in present:
                await self._ledger.restore(record)
                restored += 1
        return restored

    async def _in_thread(self, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *arguments)


def _label(binding: object) -> str:
    return f"{getattr(binding, 'namespace', '')}/{getattr(binding, 'name', '')}"
