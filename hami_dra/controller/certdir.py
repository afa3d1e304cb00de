"""Certificates in a directory, written so that a reader never sees half a file.

Key before certificate: between the two renames the pair does not match, and the webhook keeps the
old one until it does.
"""

import datetime as dt
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from hami_dra.contract.errors import FatalError
from hami_dra.controller.authority import (
    Pair,
    authority_is_good,
    make_authority,
    make_serving,
    serving_is_good,
)

_AUTHORITY: Final = ("ca.crt", "ca.key")
_SERVING: Final = ("tls.crt", "tls.key")
_PUBLIC_MODE: Final = 0o644
_PRIVATE_MODE: Final = 0o600


def ensure_certificates(directory: Path, hosts: Sequence[str], now: dt.datetime) -> bytes:
    """Make the directory hold a sound authority and serving certificate; return the caBundle.

    What is good is kept, so calling it again changes nothing. A new authority replaces the serving
    certificate too.

    Raises:
        FatalError: The directory cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        authority = _read(directory, _AUTHORITY)
        if authority is None or not authority_is_good(authority, now):
            authority = make_authority(now)
            _write(directory, _AUTHORITY, authority)
        serving = _read(directory, _SERVING)
        if serving is None or not serving_is_good(serving, authority, hosts, now):
            _write(directory, _SERVING, make_serving(authority, hosts, now))
    except OSError as error:
        raise FatalError(
            f"cannot keep certificates in {directory}: {error}; give --cert-dir a directory that "
            "this process may write"
        ) from error
    return authority.certificate


def _read(directory: Path, names: tuple[str, str]) -> Pair | None:
    try:
        certificate, key = (directory.joinpath(name).read_bytes() for name in names)
    except FileNotFoundError:
        return None
    return Pair(certificate, key)


def _write(directory: Path, names: tuple[str, str], pair: Pair) -> None:
    certificate, key = names
    _replace(directory / key, pair.key, _PRIVATE_MODE)
    _replace(directory / certificate, pair.certificate, _PUBLIC_MODE)


def _replace(path: Path, content: bytes, mode: int) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
