"""Container images without a registry: OCI layouts in a tar file, written here.

The same input gives the same bytes: sorted members, no times, no owners.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.cluster import rootfs
from tests.cluster.errors import ClusterError
from tests.cluster.rootfs import Member

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

PAUSE = "docker.io/local/pause:1"
CUDA_TEST = "docker.io/local/cuda-test:1"
PROBES = ("cuprobe", "cuprobe-dl")
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image's name, its only layer, and what it runs."""

    reference: str
    members: tuple[Member, ...]
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()


def pause_image(build: Path) -> Image:
    """Return the sandbox image: one static program that waits."""
    program = _program(build, "pause")
    return Image(
        reference=PAUSE,
        members=(Member(path="pause", mode=0o755, content=program),),
        entrypoint=("/pause",),
    )


def cuda_test_image(build: Path, extra: Mapping[str, Path] | None = None) -> Image:
    """Return an image with libc, a shell, basic tools and the CUDA probes.

    The programs are dynamic on purpose: a static one would never read /etc/ld.so.preload. libcuda
    is not in it, as it is in no CUDA image: CDI brings it.

    Args:
        build: the folder of the C build that holds ``probe/``.
        extra: more files, by their absolute path in the image.
    """
    added = {f"usr/local/bin/{name}": _program(build, name) for name in PROBES}
    for place, source in (extra or {}).items():
        added[place.lstrip("/")] = source.read_bytes()
    members = rootfs.host_tools(added)
    return Image(reference=CUDA_TEST, members=members, command=("/bin/sh",))


def write_layout(image: Image, path: Path) -> Path:
    """Write an image as an OCI layout tar that ``ctr images import`` reads; return its path."""
    layer = _tar(image.members)  # not compressed: it is unpacked once, on this machine
    architecture = ARCHITECTURES.get(os.uname().machine, os.uname().machine)
    config = _json(
        {
            "architecture": architecture,
            "os": "linux",
            "config": {
                "Env": [f"PATH={SEARCH_PATH}"],
                "Entrypoint": list(image.entrypoint) or None,
                "Cmd": list(image.command) or None,
                "WorkingDir": "/",
            },
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
        }
    )
    kind = "application/vnd.oci.image"
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": f"{kind}.manifest.v1+json",
            "config": _descriptor(f"{kind}.config.v1+json", config),
            "layers": [_descriptor(f"{kind}.layer.v1.tar", layer)],
        }
    )
    descriptor = _descriptor(f"{kind}.manifest.v1+json", manifest) | {
        "annotations": {"io.containerd.image.name": image.reference},
        "platform": {"architecture": architecture, "os": "linux"},
    }
    index = _json({"schemaVersion": 2, "manifests": [descriptor]})
    files = {"oci-layout": _json({"imageLayoutVersion": "1.0.0"}), "index.json": index}
    for blob in (config, manifest, layer):
        files[f"blobs/sha256/{hashlib.sha256(blob).hexdigest()}"] = blob
    members = [Member(path=name, mode=0o644, content=files[name]) for name in files]
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(_tar(members))
    return temporary.rename(path)


def _program(build: Path, name: str) -> bytes:
    program = build / "probe" / name
    try:
        return program.read_bytes()
    except FileNotFoundError:
        raise ClusterError(f"{program} does not exist; build the C programs first") from None


def _tar(members: Sequence[Member]) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for member in sorted(members, key=lambda m: m.path):
            info = tarfile.TarInfo(member.path)
            info.mode = member.mode
            if member.link is not None:
                info.type, info.linkname = tarfile.SYMTYPE, member.link
                archive.addfile(info)
            elif member.content is None:
                info.type = tarfile.DIRTYPE
                archive.addfile(info)
            else:
                info.size = len(member.content)
                archive.addfile(info, io.BytesIO(member.content))
    return output.getvalue()


def _descriptor(media_type: str, content: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": _digest(content), "size": len(content)}


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
