"""The node's configuration file, read at start and again whenever it has changed.

A mounted ConfigMap is changed by swapping a link above the file, minutes after it was edited; the
file is looked at every two seconds. inotify would have to watch every directory on the way and
says nothing of a file that is mounted by itself; one stat costs some microseconds.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import structlog

from hami_dra.contract.errors import FatalError, UserError
from hami_dra.contract.nodeconfig import DEFAULT_NODE_CONFIG, NodeConfig, decode_node_config
from hami_dra.policy.cardrules import find_bad_expression

_log = structlog.get_logger(__name__)

_MOST_BYTES: Final = 1 << 20
_LOOK_SECONDS: Final = 2.0

Listener = Callable[[NodeConfig], None]
Signature = tuple[int, int, int, int] | None


@dataclass(frozen=True, slots=True)
class ConfigStatistics:
    """What became of the file since the start.

    Attributes:
        accepted: Changes that are in force, or were.
        refused: Changes that could not be; what was in force before stays.
        current: Whether the file says what is in force.
    """

    accepted: int = 0
    refused: int = 0
    current: bool = True


class ConfigFile:
    """Knows what is in force.

    Args:
        path: The file; ``None``: no file, the defaults hold.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._seen: Signature = None
        self._config = DEFAULT_NODE_CONFIG
        self._statistics = ConfigStatistics()

    def statistics(self) -> ConfigStatistics:
        """Return counts since the start."""
        return self._statistics

    def read(self) -> NodeConfig:
        """Read the file at the start. Blocking.

        Raises:
            FatalError: It cannot be read, or says something that it cannot say; names the field.
        """
        if self._path is not None:
            self._seen = _identify(self._path)
            try:
                self._config = _decode(self._path)
            except UserError as error:
                raise FatalError(f"configuration {self._path}: {error}") from error
        return self._config

    async def follow(self, on_change: Listener) -> None:
        """Call with every change that can be in force, until cancelled."""
        if self._path is None:
            await asyncio.Event().wait()
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            await self.look(on_change)

    async def look(self, on_change: Listener) -> None:
        """Look once whether the file has changed; see `follow`."""
        if self._path is None:
            return
        seen = await asyncio.to_thread(_identify, self._path)
        if seen == self._seen:
            return
        self._seen = seen
        known = self._statistics
        try:
            config = await asyncio.to_thread(_decode, self._path)
        except UserError as error:
            self._statistics = replace(known, refused=known.refused + 1, current=False)
            _log.warning(
                "config.refused",
                path=str(self._path),
                error=str(error),
                hint="what was in force before stays; the next start will fail",
            )
            return
        self._statistics = replace(known, accepted=known.accepted + 1, current=True)
        if config != self._config:
            self._config = config
            _log.info("config.changed", path=str(self._path))
            on_change(config)


def _identify(path: Path) -> Signature:
    """Return what differs between two contents of a file; ``None`` without a file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


def _decode(path: Path) -> NodeConfig:
    # Imported here: a MiB that a node without such a file never pays.
    import yaml  # noqa: PLC0415

    try:
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise UserError(f"cannot be read: {error}") from error
    if len(text) > _MOST_BYTES:
        raise UserError(f"is larger than {_MOST_BYTES} bytes")
    try:
        config = decode_node_config(yaml.safe_load(text))
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"is neither YAML nor JSON: {error}") from error
    if bad := find_bad_expression(config):
        raise UserError(f"is no device selector: {bad[1]}", field=bad[0])
    return config
