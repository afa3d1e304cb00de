"""The card itself as a CDI device: the toolkit's if it defines one, else our own rendering."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import structlog

from hami_dra.cdi.driverfiles import DriverRoot, find_card_edits, find_common_edits
from hami_dra.cdi.hostspecs import HostSpecs
from hami_dra.cdi.spec import Edits, render_spec
from hami_dra.cdi.store import CdiStore
from hami_dra.contract import names
from hami_dra.contract.errors import RetryError
from hami_dra.node.claimspec import FILE_PREFIX
from hami_dra.policy.binding import BoundDevice
from hami_dra.policy.devices import GpuFacts

_log = structlog.get_logger(__name__)

TOOLKIT_KIND: Final = "nvidia.com/gpu"
CARD_FILE: Final = f"{FILE_PREFIX}{names.CDI_CLASS_BASE}"


class BaseDevices:
    """Resolves cards to CDI ids and keeps our own card file. Blocking."""

    def __init__(self, root: DriverRoot, specs: HostSpecs, store: CdiStore) -> None:
        self._root = root
        self._specs = specs
        self._store = store

    def resolve(self, device: BoundDevice, gpus: Mapping[str, GpuFacts]) -> str:
        """Return the CDI id of a card; every file behind it exists.

        Raises:
            RetryError: A file of the driver is missing; names it.
            CdiDirectoryError: Our own file cannot be written.
        """
        foreign = self._specs.find_paths(TOOLKIT_KIND, device.uuid)
        if foreign is not None:
            missing = self._find_missing(foreign)
            if missing is None:
                return f"{TOOLKIT_KIND}={device.uuid}"
            # Written for another driver version: the runtime would fail on it at start.
            _log.warning("cdi.toolkit_spec_is_stale", uuid=device.uuid, missing=missing)
        gpu = gpus.get(device.device)
        if gpu is None:
            raise RetryError(f"card {device.device} is gone from this node")
        card = find_card_edits(self._root, gpu.minor)
        common = find_common_edits(self._root, gpu.driver_version)
        missing = self._find_missing([*card.host_paths(), *common.host_paths()])
        if missing is not None:
            raise RetryError(f"{missing}: no such file, needed by card {device.device}")
        self._write(gpus, common)
        return f"{names.CDI_KIND_BASE}={device.device}"

    def write_cards(self, gpus: Mapping[str, GpuFacts]) -> None:
        """Write our own card file if the driver's files can be found. Idempotent.

        Raises:
            RetryError: The driver's files are not there.
            CdiDirectoryError: The file cannot be written.
        """
        for gpu in gpus.values():
            self._write(gpus, find_common_edits(self._root, gpu.driver_version))
            return

    def _write(self, gpus: Mapping[str, GpuFacts], common: Edits) -> None:
        cards = list(self._list_cards(gpus))
        if cards:
            self._store.write(CARD_FILE, render_spec(names.CDI_KIND_BASE, cards, common))

    def _list_cards(self, gpus: Mapping[str, GpuFacts]) -> Iterable[tuple[str, Edits]]:
        for name, gpu in sorted(gpus.items()):
            try:
                yield name, find_card_edits(self._root, gpu.minor)
            except RetryError:
                continue  # said when somebody wants that card

    def _find_missing(self, host_paths: Iterable[str]) -> str | None:
        for path in dict.fromkeys(host_paths):
            local = self._root.to_local(path) or Path(path)
            if not local.exists():
                return path
        return None
