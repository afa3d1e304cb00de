"""Annotations that list cards: comma lists of models or UUIDs, wanted or refused."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from hami_dra.contract.errors import UserError
from hami_dra.policy.selectors import negate

_MOST_ENTRIES: Final = 64
"""Each costs the scheduler a comparison for each card."""
_MOST_CEL_BYTES: Final = 10 << 10
"""resource.k8s.io/v1 validation."""


@dataclass(frozen=True, slots=True)
class CardList:
    """One such annotation.

    Attributes:
        key: Its name.
        build: Makes the condition for cards that an entry means.
        refused: Whether those cards are refused instead.
    """

    key: str
    build: Callable[[Sequence[str]], str]
    refused: bool = False


def list_selectors(annotations: Mapping[str, str], lists: Sequence[CardList]) -> Iterator[str]:
    """Yield the conditions that a pod's annotations mean, in the order of the lists.

    Raises:
        UserError: A list that is too long, by its key.
    """
    for card_list in lists:
        entries = list(dict.fromkeys(split_list(annotations.get(card_list.key, ""))))
        if not entries:
            continue
        field = locate(card_list.key)
        if len(entries) > _MOST_ENTRIES:
            raise UserError(
                f"has {len(entries)} entries; at most {_MOST_ENTRIES} can be looked for",
                field=field,
            )
        expression = card_list.build(entries)
        if card_list.refused:
            expression = negate(expression)
        if len(expression.encode()) > _MOST_CEL_BYTES:
            raise UserError(
                f"is too long; a condition on cards has at most {_MOST_CEL_BYTES} bytes",
                field=field,
            )
        yield expression


def split_list(text: str) -> list[str]:
    """Return the entries of a comma list, trimmed, without empty ones."""
    return [entry for part in text.split(",") if (entry := part.strip())]


def locate(key: str) -> str:
    """Return the path of an annotation, for messages."""
    return f'metadata.annotations["{key}"]'
