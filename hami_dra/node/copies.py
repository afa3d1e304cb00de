"""The copies of the ledger's rows that lie beside the claims' directories."""

from collections.abc import Iterator

import msgspec
import structlog

from hami_dra.cdi.store import CdiStore
from hami_dra.node.claimspec import name_file
from hami_dra.node.ledger import ClaimRecord, decode_record
from hami_dra.node.sharedir import ShareDirectories

_log = structlog.get_logger(__name__)


def read_copies(directories: ShareDirectories, store: CdiStore) -> Iterator[ClaimRecord]:
    """Return the claims that a lost ledger had. Blocking.

    A claim without its CDI file is left out: no container was ever started on it in this boot.
    """
    present = set(store.names())
    for uid, raw in directories.read_records():
        record = read_copy(uid, raw)
        if record is not None and name_file(uid) in present:
            yield record


def read_copy(uid: str, raw: bytes) -> ClaimRecord | None:
    """Return what a copy says, ``None`` if it says nothing that this program can read."""
    try:
        record = decode_record(raw)
    except msgspec.MsgspecError as error:
        _log.warning("recovery.record_unreadable", uid=uid, error=str(error))
        return None
    return record if record.binding.claim_uid == uid else None
