"""The annotation by which the limits of a granted share are changed while programs run on it.

A claim's spec and allocation never change, so the wish stands in ``metadata.annotations`` and the
node that prepared the claim answers in ``status.devices`` (docs/reference/claims.md).
"""

import hashlib
from collections.abc import Mapping
from typing import Final

import msgspec

from hami_dra.contract.errors import UserError
from hami_dra.contract.names import ANNOTATION_LIMITS

FIELD: Final = f"metadata.annotations[{ANNOTATION_LIMITS}]"
_DIGEST_LENGTH: Final = 16


class LimitChange(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """The limits of one request, on each of its cards.

    Attributes:
        memory_mib: MiB; ``None``: as granted.
        cores_percent: Percent of the card's compute, 0 = not limited; ``None``: as granted.
    """

    memory_mib: int | None = msgspec.field(name="memoryMiB", default=None)
    cores_percent: int | None = msgspec.field(name="coresPercent", default=None)


_DECODER: Final = msgspec.json.Decoder(dict[str, LimitChange])


def decode_limits(text: str) -> dict[str, LimitChange]:
    """Read the annotation's text: changes by request name.

    Raises:
        UserError: Not such an object; says where.
    """
    try:
        return _DECODER.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
        raise UserError(
            f'cannot be read: {error}; write {{"<request>": {{"memoryMiB": 1000, '
            '"coresPercent": 30}}',
            field=FIELD,
        ) from error


def encode_limits(changes: Mapping[str, LimitChange]) -> str:
    """Return the annotation's text, the same for the same changes."""
    return msgspec.json.encode(dict(sorted(changes.items()))).decode()


def digest_limits(text: str) -> str:
    """Return what tells one text of the annotation from another; a node says which it has read."""
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:_DIGEST_LENGTH]
