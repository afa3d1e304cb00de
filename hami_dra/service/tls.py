"""How much memory an idle TLS connection keeps."""

from asyncio import sslproto
from typing import Final

_READ_BYTES: Final = 32 << 10
"""Two TLS records; more than most requests and answers have."""


def limit_read_buffers() -> None:
    """Give each TLS connection made from now on 32 KiB to read into, instead of asyncio's 256 KiB.

    It has the buffer for as long as it lives. An API server keeps up to 25 idle connections to a
    webhook, and there may be several API servers; a node has half a dozen to one. More data than
    that is read in more turns. For the whole process; idempotent.
    """
    sslproto.SSLProtocol.max_size = _READ_BYTES
