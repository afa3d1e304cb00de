"""Claims whose files nobody touched since they were found in order.

Comparing a claim's files with what they should be reads and renders all of them. The kernel dates
every change of a file or directory in its inode (ctime, which no program can set), so a claim whose
inodes are what they were is still in order. What a claim only refers to, such as the library, has
to be the same file, of the same kind.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from hami_dra.node.ledger import ClaimRecord
from hami_dra.node.preparer import ClaimFiles
from hami_dra.service.clock import Clock

_LONGEST_SECONDS: Final = 300.0
"""After so long a claim is gone through whatever its inodes say: there may be file systems that
date changes otherwise than we know."""
_YOUNG_NS: Final = 10**9
"""Two changes within a tick of the kernel's clock have one date, so a date has to be older."""

_Stamp = tuple[int, ...]
_Stamps = Mapping[str, _Stamp]


@dataclass(frozen=True, slots=True)
class Look:
    """How a claim's files looked at one moment.

    Attributes:
        record: What they are to be compared with.
        owned: By path, those whose content is ours; empty if one is not there.
        used: Those that only have to be there; likewise.
        at: Seconds of the clock that never goes back.
        wall_ns: Since the epoch.
    """

    record: ClaimRecord
    owned: _Stamps
    used: _Stamps
    at: float
    wall_ns: int


class IntactClaims:
    """Remembers looks at claims. Blocking, and for one thread.

    Args:
        files: Of claims.
        clock: Tells how old a change is.
    """

    def __init__(self, files: ClaimFiles, clock: Clock) -> None:
        self._files = files
        self._clock = clock
        self._known: dict[str, Look] = {}

    def list_others(self, records: Sequence[ClaimRecord]) -> list[ClaimRecord]:
        """Return the claims that have to be gone through, and forget those that are not listed."""
        listed = {record.binding.claim_uid for record in records}
        self._known = {uid: look for uid, look in self._known.items() if uid in listed}
        used: dict[str, _Stamp] = {}
        return [record for record in records if not self._is_intact(record, used)]

    def look(self, record: ClaimRecord) -> Look:
        """Return how a claim's files look; to be called before they are gone through.

        Raises:
            RetryError: See `ClaimFiles.render`.
        """
        owned, used = self._files.list_paths(record)
        return Look(
            record,
            owned=_stamp_all(owned, _stamp_content),
            used=_stamp_all(used, _stamp_kind),
            at=self._clock.monotonic(),
            wall_ns=int(self._clock.wall() * 1e9),
        )

    def keep(self, look: Look) -> None:
        """Take note that a claim was in order, or was brought into it, after this look.

        What was written meanwhile looks otherwise, and so the claim is gone through once more.
        """
        uid = look.record.binding.claim_uid
        # What rights to a part of a card are called, the driver says, and no file's date.
        if not look.owned or not look.used or any(d.mig for d in look.record.binding.devices):
            self._known.pop(uid, None)
        elif look.wall_ns - max(stamp[0] for stamp in look.owned.values()) >= _YOUNG_NS:
            self._known[uid] = look

    def _is_intact(self, record: ClaimRecord, used: dict[str, _Stamp]) -> bool:
        """Whether a claim is as it was; most of what claims use is the same for all of them."""
        known = self._known.get(record.binding.claim_uid)
        if known is None or record != known.record:
            return False
        if self._clock.monotonic() - known.at >= _LONGEST_SECONDS:
            return False
        try:
            for path in known.used.keys() - used.keys():
                used[path] = _stamp_kind(path)
            return all(used[path] == stamp for path, stamp in known.used.items()) and all(
                _stamp_content(path) == stamp for path, stamp in known.owned.items()
            )
        except OSError:
            return False


def _stamp_all(paths: Iterable[str], stamp: Callable[[str], _Stamp]) -> _Stamps:
    try:
        return {path: stamp(path) for path in paths}
    except OSError:
        return {}


def _stamp_content(path: str) -> _Stamp:
    found = os.lstat(path)
    return found.st_ctime_ns, found.st_dev, found.st_ino, found.st_size, found.st_mode


def _stamp_kind(path: str) -> _Stamp:
    found = os.stat(path)  # noqa: PTH116 - every few seconds, of every claim
    return found.st_dev, found.st_ino, found.st_rdev, found.st_mode
