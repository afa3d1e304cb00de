"""The card itself as a CDI device: the toolkit's if it defines one, else our own rendering."""

import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

import structlog

from hami_dra.cdi.driverfiles import DriverFiles, DriverRoot, find_card_edits, find_driver_files
from hami_dra.cdi.hostspecs import HostDevice, HostSpecs
from hami_dra.cdi.spec import Edits, render_spec
from hami_dra.cdi.store import CdiStore
from hami_dra.contract import names
from hami_dra.contract.errors import RetryError
from hami_dra.node.claimspec import FILE_PREFIX
from hami_dra.policy.binding import BoundDevice
from hami_dra.policy.devices import GpuFacts, name_device

_log = structlog.get_logger(__name__)

TOOLKIT_KIND: Final = "nvidia.com/gpu"
CARD_FILE: Final = f"{FILE_PREFIX}{names.CDI_CLASS_BASE}"
_CARD_NODE: Final = re.compile(r"/dev/nvidia\d+")
_SEARCH_SECONDS: Final = 60.0
"""How long a search for driver files holds where no directory that it looked into has changed."""


class BaseDevices:
    """Resolves cards to CDI ids and keeps our own card file. Blocking; one thread only.

    Args:
        root: The driver's.
        specs: Of others.
        store: Ours.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        root: DriverRoot,
        specs: HostSpecs,
        store: CdiStore,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._root = root
        self._specs = specs
        self._store = store
        self._clock = clock
        self._searched: _Searched | None = None
        self._written: tuple[Edits, dict[str, Edits]] | None = None
        self._gpus: Mapping[str, GpuFacts] = {}
        self._told: set[tuple[str, str]] = set()

    def resolve(self, device: BoundDevice, gpus: Mapping[str, GpuFacts]) -> str:
        """Return the CDI id of a card; every file behind it exists.

        Raises:
            RetryError: A file of the driver is missing; names it.
            CdiDirectoryError: Our own file cannot be written.
        """
        card_name = name_device(device.mig.card) if device.mig else device.device
        gpu = gpus.get(card_name)
        # The toolkit's devices of a divided card are of the instances there were when it looked.
        foreign = None if device.mig else self._find_foreign(device.uuid, gpu)
        if foreign is not None:
            return foreign.id
        if gpu is None:
            raise RetryError(f"card {card_name} is gone from this node")
        card = find_card_edits(self._root, gpu.minor, gpu.pci_bus_id)
        searched = self._search(gpu.driver_version)
        missing = _find_absent(searched.local_paths) or self._find_missing(card.host_paths())
        if missing is not None:
            self._searched = None
            raise RetryError(f"{missing}: no such file, needed by card {card_name}")
        if not self._is_written(card_name, card, searched.found.edits):
            self._write(gpus, searched.found.edits)
        return f"{names.CDI_KIND_BASE}={card_name}"

    def write_cards(self, gpus: Mapping[str, GpuFacts]) -> None:
        """Write our own card file if the driver's files can be found. Idempotent.

        Raises:
            RetryError: The driver's files are not there.
            CdiDirectoryError: The file cannot be written.
        """
        self._gpus = gpus
        for gpu in gpus.values():
            self._write(gpus, self._search(gpu.driver_version).found.edits)
            return

    def repair(self) -> None:
        """Write the card file again for the cards of the last time, with the files of now.

        A container that restarts is not prepared again, and a daemon whose socket is mounted may
        have gone meanwhile.

        Raises:
            RetryError: See `write_cards`.
            CdiDirectoryError: See `write_cards`.
        """
        self.write_cards(self._gpus)

    def _find_foreign(self, uuid: str, gpu: GpuFacts | None) -> HostDevice | None:
        """Return the toolkit's device of a card: named by UUID, or by an index that is proven."""
        candidates = [uuid]
        if gpu is not None:
            candidates += [str(gpu.index), f"gpu{gpu.index}"]
        found = self._specs.find_device(TOOLKIT_KIND, candidates)
        for problem in self._specs.problems:
            self._warn("cdi.host_spec_refused", problem)
        if found is None:
            return None
        missing = self._find_missing(found.paths)
        if missing is not None:
            # Written for another driver version: the runtime would fail on it at start.
            reason = f"{missing} does not exist"
        elif gpu is not None and not _is_card(found, gpu):
            reason = f"it is not /dev/nvidia{gpu.minor}, which the card is now"
        else:
            return found
        self._warn(
            "cdi.toolkit_spec_is_stale",
            f"{found.id} in {found.file}: {reason}; our own rendering is used until "
            "`nvidia-ctk cdi generate` has run again",
        )
        return None

    def _search(self, driver_version: str) -> "_Searched":
        known = self._searched
        now = self._clock()
        if known is None or not known.holds(driver_version, now):
            found = find_driver_files(self._root, driver_version)
            for problem in found.problems:
                self._warn("cdi.driver_file_left_out", problem)
            local = [self._to_local(path) for path in found.edits.host_paths()]
            known = self._searched = _Searched(found, driver_version, now, local)
        return known

    def _is_written(self, name: str, card: Edits, common: Edits) -> bool:
        """Whether our file says this of a card; what others did to it `repair` puts right."""
        return (
            self._written is not None
            and self._written[0] is common
            and self._written[1].get(name) == card
            and self._store.has(CARD_FILE)
        )

    def _write(self, gpus: Mapping[str, GpuFacts], common: Edits) -> None:
        self._gpus = gpus
        cards = dict(self._list_cards(gpus))
        if cards:
            spec = render_spec(names.CDI_KIND_BASE, list(cards.items()), common)
            self._store.write(CARD_FILE, spec, shared=True)
            self._written = (common, cards)

    def _list_cards(self, gpus: Mapping[str, GpuFacts]) -> Iterable[tuple[str, Edits]]:
        for name, gpu in sorted(gpus.items()):
            try:
                yield name, find_card_edits(self._root, gpu.minor, gpu.pci_bus_id)
            except RetryError:
                continue  # said when somebody wants that card

    def _find_missing(self, host_paths: Iterable[str]) -> str | None:
        return next((p for p in host_paths if not Path(self._to_local(p)).exists()), None)

    def _to_local(self, host_path: str) -> str:
        return str(self._root.to_local(host_path) or host_path)

    def _warn(self, event: str, reason: str) -> None:
        """Log once: the same thing is found at every Prepare."""
        if (event, reason) not in self._told:
            self._told.add((event, reason))
            _log.warning(event, reason=reason)


class _Searched:
    """The result of a search, and whether it still holds."""

    def __init__(
        self, found: DriverFiles, driver_version: str, now: float, local_paths: Iterable[str]
    ) -> None:
        self.found = found
        self.local_paths = tuple(dict.fromkeys(local_paths))
        self._version = driver_version
        self._until = now + _SEARCH_SECONDS
        self._stamps = _stamp(found.directories)

    def holds(self, driver_version: str, now: float) -> bool:
        return (
            self._version == driver_version
            and now < self._until
            and _stamp(self.found.directories) == self._stamps
        )


def _find_absent(local_paths: Iterable[str]) -> str | None:
    """Return a path that is not there. At every Prepare, so it makes no Path objects."""
    for path in local_paths:
        try:
            os.stat(path)  # noqa: PTH116 - see above
        except OSError:
            return path
    return None


def _is_card(device: HostDevice, gpu: GpuFacts) -> bool:
    """Whether a device's card nodes are this card's; one named by an index has to show them."""
    cards = {
        Path(node.host_path or node.path).name
        for node in device.nodes
        if _CARD_NODE.fullmatch(node.path)
    }
    own = {f"nvidia{gpu.minor}"}
    return cards == own or (not cards and device.id.endswith(f"={gpu.uuid}"))


def _stamp(directories: Iterable[Path]) -> list[tuple[int, int] | None]:
    stamps: list[tuple[int, int] | None] = []
    for directory in directories:
        try:
            status = directory.stat()
            stamps.append((status.st_ino, status.st_mtime_ns))
        except OSError:
            stamps.append(None)
    return stamps
