"""Reads what containers report about themselves. The tenant writes these files: trust nothing."""

import os
import stat
from pathlib import Path
from typing import Final

from hami_dra.contract import names
from hami_dra.contract.region import RegionView, decode_region

_LONGEST_BYTES: Final = 1 << 20
"""Above any region file of this ABI; a tenant may make it as large as it likes."""


def read_region(directory: Path) -> RegionView | None:
    """Return the region in a share's directory; ``None`` before a program has made one. Blocking.

    A symbolic link, a pipe or anything else but a plain file is not followed or waited for.

    Raises:
        ValueError: The file is not a region; the message says why.
        OSError: It cannot be read.
    """
    path = directory / names.REGION_FILE
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError(f"{path} is not a plain file")
        return decode_region(os.pread(descriptor, _LONGEST_BYTES, 0))
    finally:
        os.close(descriptor)
