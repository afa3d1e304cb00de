"""The directories of prepared claims: ``<state>/claims/<uid>/<request>/{grant,region/}``.

The parents are root's alone. A container sees only its own grant (read-only file) and region
(directory, world-writable with the sticky bit, because containers run as any user). Both are bind
mounts, so nobody walks through the parents.
"""

import os
import re
import shutil
import stat
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from hami_dra.cdi.durable import write_whole
from hami_dra.contract import names
from hami_dra.contract.errors import RetryError, UserError
from hami_dra.contract.grant import (
    FILE_SIZE,
    HEADER_OFFSETS,
    Grant,
    GrantDevice,
    decode_grant,
    encode_grant,
    says_alone,
)
from hami_dra.contract.quantity import MIB
from hami_dra.policy.binding import Binding, BoundDevice

_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,252}[A-Za-z0-9])?")
_RECORD: Final = "record.json"
_PRIVATE_MODE: Final = 0o700
_REGION_MODE: Final = 0o1777
_GRANT_MODE: Final = 0o444
_SEQUENCE_OFFSET: Final = 16
_VALUES_OFFSET: Final = 24


class ShareDirectories:
    """Makes, repairs and removes them. Blocking; call it from a thread of its own."""

    def __init__(self, state_dir: Path) -> None:
        self._root = state_dir / "claims"
        self._root_name = str(self._root)

    def grant_path(self, uid: str, request: str) -> Path:
        """Return where a request's grant is."""
        return Path(f"{self._claim(uid)}/{_checked(request)}/{names.GRANT_FILE}")

    def region_path(self, uid: str, request: str) -> Path:
        """Return where a request's region directory is."""
        return Path(f"{self._claim(uid)}/{_checked(request)}/{names.REGION_DIR}")

    def metadata_path(self, uid: str, request: str) -> Path:
        """Return where a request's device metadata is."""
        return Path(f"{self._claim(uid)}/{_checked(request)}/{names.METADATA_FILE}")

    def ensure(self, binding: Binding) -> None:
        """Make what is missing and bring grants up to date. Idempotent.

        Nothing that exists is removed: programs may be running on it. A power cut may take what is
        made here: no program outlives one, and this is called again after it, for every claim.

        Raises:
            RetryError: A file cannot be written at the moment.
        """
        try:
            self._ensure(binding)
        except OSError as error:
            raise RetryError(f"state directory {self._root}: {error.strerror or error}") from error

    def mark_alone(self, uid: str, request: str, alone: Sequence[bool]) -> bool:
        """Say in a grant on which of its cards nobody else works; return whether that is new.

        Nothing is made that is not there, and nothing forced to the disk: it holds for seconds.

        Args:
            uid: Of the claim.
            request: Whose grant.
            alone: By device of the grant.

        Raises:
            RetryError: The file cannot be written at the moment.
        """
        path = str(self.grant_path(uid, request))
        marked = _mark(_read_grant(path), alone)
        if marked is None:
            return False
        try:
            _rewrite(path, marked)
        except OSError as error:
            raise RetryError(f"{path} cannot be written: {error}") from error
        return True

    def differs_alone(self, uid: str, request: str, alone: Sequence[bool]) -> bool:
        """Whether `mark_alone` would change the grant. Needs no lock, for nothing is written."""
        path = f"{self._claim(uid)}/{_checked(request)}/{names.GRANT_FILE}"
        # Of every grant every few seconds, and nearly always it says so already.
        raw = _read_raw(path)
        return not says_alone(raw, alone) and _mark(_decode(raw), alone) is not None

    def write_heartbeat(self, uid: str, request: str, value: int) -> None:
        """Say in a grant that a node lives; where there is none, nothing is made.

        One aligned word outside the sequence, so nobody needs to hold the claim.

        Args:
            uid: Of the claim.
            request: Whose grant.
            value: Another one than before; not 0.

        Raises:
            RetryError: The file cannot be written at the moment.
        """
        path = str(self.grant_path(uid, request))
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        except OSError as error:
            raise RetryError(f"{path} cannot be written: {error}") from error
        try:
            os.pwrite(descriptor, value.to_bytes(4, "little"), HEADER_OFFSETS["heartbeat"])
        except OSError as error:
            raise RetryError(f"{path} cannot be written: {error}") from error
        finally:
            os.close(descriptor)

    def write_record(self, uid: str, record: bytes) -> None:
        """Keep a copy of the ledger's row beside the data, for the day the ledger is lost.

        It is whole for whoever reads it, and not waited for: after a power cut it may be empty,
        and then no container runs on what it says.

        Raises:
            RetryError: It cannot be written at the moment.
        """
        claim = self._claim(uid)
        try:
            self._make_claim(claim)
            write_whole(f"{claim}/{_RECORD}", record, mode=0o600)
        except OSError as error:
            raise RetryError(f"state directory {self._root}: {error.strerror or error}") from error

    def list_paths(self, binding: Binding) -> list[str]:
        """Return what `ensure` makes and brings up to date, but for what tenants write in."""
        claim = self._claim(binding.claim_uid)
        found = [claim]
        for request, devices in binding.requests.items():
            found.append(f"{claim}/{_checked(request)}")
            if any(device.controlled for device in devices):
                found.append(f"{claim}/{request}/{names.GRANT_FILE}")
        return found

    def read_records(self) -> Iterable[tuple[str, bytes]]:
        """Return claim UIDs and the records found, of every claim that has one."""
        for uid in self.uids():
            raw = self.read_record(uid)
            if raw is not None:
                yield uid, raw

    def read_record(self, uid: str) -> bytes | None:
        """Return the copy of one claim, ``None`` if there is none that can be read."""
        try:
            with open(f"{self._claim(uid)}/{_RECORD}", "rb") as file:  # noqa: PTH123 - see `_make`
                return file.read()
        except OSError:
            return None

    def sweep_temporaries(self, uid: str) -> None:
        """Remove what a killed writer left among a claim's files. Errors are left to the next."""
        claim = Path(self._claim(uid))
        # No deeper: below a region are a tenant's files.
        for path in (*claim.glob(".*.tmp"), *claim.glob("*/.*.tmp")):
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def uids(self) -> list[str]:
        """Return the claims that have a directory."""
        try:
            return sorted(p.name for p in self._root.iterdir() if _NAME.fullmatch(p.name))
        except FileNotFoundError:
            return []

    def remove(self, uid: str) -> None:
        """Remove a claim's directories. Idempotent.

        A power cut may bring them back; what belongs to no claim is removed at the next start.

        Raises:
            RetryError: Something cannot be removed at the moment.
        """
        directory = self._claim(uid)
        try:
            shutil.rmtree(directory)
        except OSError as error:
            # A tenant's program may have removed a file of its own meanwhile.
            if not os.path.lexists(directory):
                return
            raise RetryError(f"{directory} cannot be removed: {error}") from error

    def clear_regions(self, binding: Binding) -> None:
        """Empty the region directories of a claim that has no living process (after a reboot).

        Raises:
            RetryError: Something cannot be removed or made at the moment.
        """
        for request in binding.requests:
            region = self.region_path(binding.claim_uid, request)
            try:
                if region.is_dir():
                    shutil.rmtree(region)
                    _make(str(region), _REGION_MODE)
            except OSError as error:
                raise RetryError(f"{region} cannot be emptied: {error}") from error

    def _claim(self, uid: str) -> str:
        # Names, not Path objects: at every Prepare, a dozen times.
        return f"{self._root_name}/{_checked(uid)}"

    def _make_claim(self, claim: str) -> None:
        try:
            _make(self._root_name, _PRIVATE_MODE)
        except FileNotFoundError:
            self._root.mkdir(mode=_PRIVATE_MODE, parents=True, exist_ok=True)
        _make(claim, _PRIVATE_MODE)

    def _ensure(self, binding: Binding) -> None:
        claim = self._claim(binding.claim_uid)
        self._make_claim(claim)
        for request, devices in binding.requests.items():
            controlled = [device for device in devices if device.controlled]
            if not controlled:
                continue
            directory = f"{claim}/{_checked(request)}"
            _make(directory, _PRIVATE_MODE)
            _make(f"{directory}/{names.REGION_DIR}", _REGION_MODE)
            _write_grant(
                f"{directory}/{names.GRANT_FILE}",
                Grant(
                    claim_uid=binding.claim_uid,
                    request=request,
                    devices=tuple(_grant_device(device) for device in controlled),
                ),
            )


def _checked(name: str) -> str:
    """Refuse a name from outside that is not one plain path component."""
    if not _NAME.fullmatch(name):
        raise UserError(f"{name!r} is not a claim UID or request name")
    return name


def _grant_device(device: BoundDevice) -> GrantDevice:
    return GrantDevice(
        uuid=device.uuid,
        memory_limit_bytes=device.memory_mib * MIB,
        cores_percent=device.cores_percent,
        share_id=device.share_id or "",
        control_disabled=device.control_disabled,
        core_policy=device.core_policy or "default",
        priority=device.priority,
        ceiling_percent=device.ceiling_percent,
        burst_ms=device.burst_ms,
        spill=device.oversubscription,
        mps=device.mps is not None,
    )


def _make(name: str, mode: int) -> None:
    """Make a directory, or bring the mode of the one that is there into order.

    By its name: at every Prepare, and every few seconds for every claim.
    """
    try:
        found = os.stat(name).st_mode  # noqa: PTH116
    except FileNotFoundError:
        os.mkdir(name, mode)  # noqa: PTH102
        found = os.stat(name).st_mode  # noqa: PTH116 - the umask may have taken from it
    if stat.S_IMODE(found) != mode:
        os.chmod(name, mode)  # noqa: PTH101


def _write_grant(path: str, grant: Grant) -> None:
    """Write a grant; one that exists is changed in place, because containers have it mapped."""
    known = _read_grant(path)
    if known is None or _cards(known) != _cards(grant):
        # Nobody can be using it: an allocation does not change while a pod holds the claim.
        write_whole(path, encode_grant(grant), mode=_GRANT_MODE)
        return
    # Who is alone changes by the second, and is not the caller's to know.
    devices = tuple(
        replace(device, alone=old.alone)
        for device, old in zip(grant.devices, known.devices, strict=True)
    )
    if known.devices == devices and known.sequence % 2 == 0:
        return
    _rewrite(
        path,
        replace(grant, devices=devices, sequence=known.sequence, heartbeat=known.heartbeat),
    )


def _rewrite(path: str, grant: Grant) -> None:
    """Change the values of a grant that containers have mapped, which has `grant.sequence` now."""
    busy = grant.sequence | 1
    content = encode_grant(grant)
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        # Odd while the values change, then even again: readers of the mapping retry meanwhile.
        os.pwrite(descriptor, busy.to_bytes(8, "little"), _SEQUENCE_OFFSET)
        os.pwrite(descriptor, content[_VALUES_OFFSET:], _VALUES_OFFSET)
        os.pwrite(descriptor, (busy + 1).to_bytes(8, "little"), _SEQUENCE_OFFSET)
    finally:
        os.close(descriptor)


def _read_grant(path: str) -> Grant | None:
    return _decode(_read_raw(path))


def _decode(raw: bytes) -> Grant | None:
    try:
        return decode_grant(raw)
    except ValueError:
        return None


def _read_raw(path: str) -> bytes:
    """Return a grant's content, whatever it is; nothing if it cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(descriptor, FILE_SIZE + 1)  # one that is longer is none
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def _mark(known: Grant | None, alone: Sequence[bool]) -> Grant | None:
    """Return what a grant should say of who is alone; ``None`` if it does, or cannot."""
    if known is None or len(known.devices) != len(alone):
        return None
    devices = tuple(
        replace(device, alone=value) for device, value in zip(known.devices, alone, strict=True)
    )
    return None if devices == known.devices else replace(known, devices=devices)


def _cards(grant: Grant) -> list[tuple[str, str]]:
    return [(device.uuid, device.share_id) for device in grant.devices]
