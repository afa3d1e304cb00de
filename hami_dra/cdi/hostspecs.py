"""CDI specifications that others wrote, above all ``nvidia-ctk cdi generate``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

_SUFFIXES: Final = (".json", ".yaml")


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
        self._parsed: dict[Path, tuple[tuple[int, int, int], dict[str, Any]]] = {}

    def find_paths(self, kind: str, device: str) -> list[str] | None:
        """Return the host paths that a device's edits refer to; ``None`` if nobody defines it."""
        for directory in reversed(self._directories):
            for spec in self._load(directory):
                found = _find_device(spec, kind, device)
                if found is not None:
                    return [path for edits in found for path in _list_paths(edits)]
        return None

    def _load(self, directory: Path) -> list[dict[str, Any]]:
        try:
            paths = sorted(p for p in directory.iterdir() if p.suffix in _SUFFIXES)
        except OSError:
            return []
        return [
            spec
            for path in paths
            if not path.name.startswith(self._ignored_prefix)
            for spec in (self._parse(path),)
            if spec is not None
        ]

    def _parse(self, path: Path) -> dict[str, Any] | None:
        try:
            status = path.stat()
            version = (status.st_ino, status.st_mtime_ns, status.st_size)
            known = self._parsed.get(path)
            if known is not None and known[0] == version:
                return known[1]
            content = path.read_bytes()
            spec = (
                msgspec.json.decode(content)
                if path.suffix == ".json"
                else yaml.safe_load(content.decode())
            )
        except (OSError, UnicodeDecodeError, msgspec.DecodeError, yaml.YAMLError):
            # Somebody else's broken file is the runtime's business; to us it defines nothing.
            return None
        if not isinstance(spec, dict):
            return None
        self._parsed[path] = (version, spec)
        return spec


def _find_device(spec: Mapping[str, Any], kind: str, device: str) -> list[Mapping[str, Any]] | None:
    if spec.get("kind") != kind:
        return None
    for entry in spec.get("devices") or ():
        if isinstance(entry, dict) and entry.get("name") == device:
            return [entry.get("containerEdits") or {}, spec.get("containerEdits") or {}]
    return None


def _list_paths(edits: Mapping[str, Any]) -> list[str]:
    paths = [str(mount.get("hostPath", "")) for mount in edits.get("mounts") or ()]
    paths += [str(hook.get("path", "")) for hook in edits.get("hooks") or ()]
    paths += [
        str(node.get("hostPath") or node.get("path", "")) for node in edits.get("deviceNodes") or ()
    ]
    return [path for path in paths if path]
