"""Device metadata on disk: ``<state>/claims/<uid>/<request>/metadata.json`` and its CDI file.

A file of its own in the CDI directory, because the protocol has a kind of its own for it and a
claim whose limits change keeps its other file as it is. A container that runs keeps the file that
it was started with; the next one gets the new one. What holds at any moment is in the grant.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from hami_dra.cdi.durable import Writes, write_whole
from hami_dra.cdi.spec import Edits, Mount, render_spec
from hami_dra.cdi.store import CdiStore
from hami_dra.contract import names
from hami_dra.contract.errors import RetryError
from hami_dra.node.claimspec import FILE_PREFIX
from hami_dra.node.sharedir import ShareDirectories
from hami_dra.policy.binding import Binding
from hami_dra.policy.devices import GpuFacts
from hami_dra.policy.metadata import (
    decode_metadata,
    describe_request,
    encode_metadata,
    name_container_path,
)

METADATA_PREFIX: Final = f"{FILE_PREFIX}{names.CDI_CLASS_METADATA}-"
_MODE: Final = 0o444
_NO_CARDS: Final[Mapping[str, GpuFacts]] = {}


class MetadataFiles:
    """Writes and removes them. Blocking."""

    def __init__(self, store: CdiStore, directories: ShareDirectories) -> None:
        self._store = store
        self._directories = directories

    def write(self, binding: Binding, gpus: Mapping[str, GpuFacts]) -> None:
        """Bring a claim's documents up to date; each is replaced whole. Idempotent.

        Raises:
            RetryError: A file cannot be written at the moment.
        """
        try:
            for request in binding.requests:
                path = self._directories.metadata_path(binding.claim_uid, request)
                _write(path, describe_request(binding, request, gpus))
        except OSError as error:
            raise RetryError(
                f"metadata of claim {binding.claim_uid}: {error.strerror or error}"
            ) from error

    def write_spec(self, binding: Binding, writes: Writes | None = None) -> bool:
        """Write the CDI file that mounts the documents; return whether it changed.

        With `writes` it is there when those are. A document that is missing is written from what
        the binding has.

        Raises:
            RetryError: A file cannot be written at the moment.
            CdiDirectoryError: The directory is not writable.
        """
        paths = self._paths(binding)
        if not all(map(os.path.isfile, paths.values())):
            self.write(binding, _NO_CARDS)
        spec = _render(binding, paths)
        return self._store.write(name_metadata_file(binding.claim_uid), spec, writes=writes)

    def list_paths(self, binding: Binding) -> list[Path]:
        """Return where a claim's documents and their CDI file are."""
        spec = self._store.find_path(name_metadata_file(binding.claim_uid))
        return [*self._paths(binding).values(), spec]

    def remove_spec(self, uid: str, writes: Writes | None = None) -> None:
        """Remove a claim's CDI file, see `CdiStore.remove`. Idempotent.

        The documents go with the claim's directory.

        Raises:
            RetryError: It cannot be removed at the moment.
            CdiDirectoryError: The directory is not writable.
        """
        self._store.remove(name_metadata_file(uid), writes)

    def _paths(self, binding: Binding) -> dict[str, Path]:
        return {
            request: self._directories.metadata_path(binding.claim_uid, request)
            for request in binding.requests
        }


def name_metadata_file(claim_uid: str) -> str:
    """Return the name of the CDI file with a claim's metadata, without suffix."""
    return f"{METADATA_PREFIX}{claim_uid}"


def name_metadata_ids(binding: Binding) -> list[tuple[str, ...]]:
    """Return, for each result, the CDI ids of its metadata: one for a request's first device."""
    seen: set[str] = set()
    found: list[tuple[str, ...]] = []
    for device in binding.devices:
        name = _name_device(binding, device.request)
        found.append(() if name in seen else (f"{names.CDI_KIND_METADATA}={name}",))
        seen.add(name)
    return found


def _name_device(binding: Binding, request: str) -> str:
    return f"{binding.claim_uid}_{request}"


def _render(binding: Binding, paths: Mapping[str, Path]) -> dict[str, Any]:
    return render_spec(
        names.CDI_KIND_METADATA,
        [
            (
                _name_device(binding, request),
                Edits(mounts=(Mount(str(path), name_container_path(binding, request)),)),
            )
            for request, path in paths.items()
        ],
    )


def _write(path: Path, document: Mapping[str, Any]) -> None:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - at every Prepare
            known, generation = decode_metadata(file.read())
        if known == document:
            return
    except (FileNotFoundError, ValueError):
        generation = 0  # there is none that could be read
    content = encode_metadata(document, generation + 1)
    try:
        # A power cut ends all containers; kubelet then asks again, and it is written anew.
        write_whole(path, content, mode=_MODE)
    except FileNotFoundError:  # a claim without libvgpu has no other file there
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(path, content, mode=_MODE)
