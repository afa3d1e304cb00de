"""CDI specifications that others wrote, above all ``nvidia-ctk cdi generate``."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hami_dra.cdi.specfile import DeviceNode, SpecFile, read_spec

_SUFFIXES: Final = (".json", ".yaml")


@dataclass(frozen=True, slots=True)
class HostDevice:
    """A device that the runtime can resolve.

    Attributes:
        id: ``vendor/class=name``.
        file: Which defines it.
        paths: Every path of the host that its edits and its file's refer to.
        nodes: Device nodes of its own, without those of the whole file.
    """

    id: str
    file: Path
    paths: tuple[str, ...]
    nodes: tuple[DeviceNode, ...]


class HostSpecs:
    """Looks devices up in the runtime's CDI directories. Blocking.

    A file is parsed again only when it changed: the toolkit's is YAML and takes milliseconds.

    Args:
        directories: Lowest priority first, as the runtime is configured.
        ignored_prefix: File names that are ours.
    """

    def __init__(self, directories: Sequence[Path], *, ignored_prefix: str) -> None:
        self._directories = tuple(dict.fromkeys(directories))
        self._ignored_prefix = ignored_prefix
        self._parsed: dict[Path, tuple[tuple[int, int, int], SpecFile | str]] = {}
        self.problems: tuple[str, ...] = ()
        """Of the last look: files and devices that the runtime refuses, and why."""

    def find_device(self, kind: str, names: Iterable[str]) -> HostDevice | None:
        """Return the first of the names that is defined, as the runtime would resolve it.

        Of directories the later wins. A name that two files of one directory define is nobody's
        (cdi.Cache of the Go library removes both, whatever another directory has).
        """
        defined: dict[str, HostDevice] = {}
        conflicts: set[str] = set()
        problems: list[str] = []
        for directory in self._directories:
            here: dict[str, HostDevice] = {}
            for path, spec in self._load(directory, problems):
                for device in _list_devices(path, spec, kind):
                    if device.id in here:
                        conflicts.add(device.id)
                        problems.append(
                            f"{device.id} is defined by both {here[device.id].file} and {path}; "
                            "the runtime resolves neither: remove one of the files"
                        )
                    here[device.id] = device
            defined |= here
        self.problems = tuple(problems)
        for name in names:
            found = defined.get(f"{kind}={name}")
            if found is not None and found.id not in conflicts:
                return found
        return None

    def _load(self, directory: Path, problems: list[str]) -> Iterable[tuple[Path, SpecFile]]:
        try:
            # Names, not Path objects: nearly all are our own files, two for each claim.
            names = os.listdir(directory)  # noqa: PTH208
        except OSError:
            return
        for name in sorted(names):
            if name.startswith(self._ignored_prefix) or not name.endswith(_SUFFIXES):
                continue
            path = directory / name
            parsed = self._parse(path)
            if isinstance(parsed, str):
                problems.append(parsed)
            else:
                yield path, parsed

    def _parse(self, path: Path) -> SpecFile | str:
        """Return a file's content, or why a runtime refuses it."""
        try:
            status = path.stat()
            version = (status.st_ino, status.st_mtime_ns, status.st_size)
            known = self._parsed.get(path)
            if known is not None and known[0] == version:
                return known[1]
        except OSError as error:
            return f"{path}: {error.strerror or error}"
        parsed: SpecFile | str
        try:
            parsed = read_spec(path)
        except (OSError, ValueError) as error:
            parsed = f"{path}: {error}"
        self._parsed[path] = (version, parsed)
        return parsed


def _list_devices(path: Path, spec: SpecFile, kind: str) -> Iterable[HostDevice]:
    if spec.kind != kind:
        return
    shared = spec.container_edits.paths()
    for device in spec.devices:
        yield HostDevice(
            id=f"{kind}={device.name}",
            file=path,
            paths=tuple(dict.fromkeys([*device.container_edits.paths(), *shared])),
            nodes=tuple(device.container_edits.device_nodes or ()),
        )
