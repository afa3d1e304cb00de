"""Memory that people write as a bare number of MiB, or of some other unit."""

from typing import Final

from hami_dra.contract.errors import UserError
from hami_dra.contract.quantity import MIB
from hami_dra.policy.written import Number, Written

MOST_MIB: Final = 2**31 - 1
"""HAMi, Volcano and vgpu-manager keep the number in an int32."""
_BYTE_SUFFIXES: Final = ("Mi", "Gi", "Ti", "Pi", "Ei")


def read_mib(written: Written, key: str, factor: int) -> Number | None:
    """Return the MiB under a key, ``None`` if it is not there.

    ``5k`` are 5000: the API server writes 5000 so. A number of bytes is refused, because nobody
    who writes ``10Gi`` means ten thousand million MiB.

    Args:
        written: What the container says.
        key: The resource.
        factor: What one of it is, in MiB.

    Raises:
        UserError: A number that means nothing here, with what to write instead.
    """
    number = written.read(key)
    if number is None:
        return None
    text = str(written.text(key))
    unit = "MiB" if factor == 1 else f"units of {factor} MiB"
    if number.value and text.endswith(_BYTE_SUFFIXES):
        wanted = -(-number.value // (MIB * factor))
        raise UserError(f"is a number of {unit}; write {wanted} for {text}", field=number.field)
    if number.value * factor > MOST_MIB:
        wanted = -(-number.value // (MIB * factor))
        raise UserError(
            f"is a number of {unit}, and {number.value * factor} MiB is more than the largest "
            f"possible {MOST_MIB}; write {wanted} if {text} was meant in bytes",
            field=number.field,
        )
    return Number(number.value * factor, number.field)
