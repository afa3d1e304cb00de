"""Numbers as they stand in a container's resources, with the path of each for messages."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Final

from hami_dra.contract.errors import UserError
from hami_dra.contract.quantity import parse_integer
from hami_dra.policy.podview import Place, PodView, list_places

_LISTS: Final = ("limits", "requests")
"""Where a key may stand; the first that has it wins."""

KeyLists = dict[str, dict[str, Any]]
"""``limits`` and ``requests``, as far as they hold keys of interest."""


@dataclass(frozen=True, slots=True)
class Number:
    """A whole number and the path of its field."""

    value: int
    field: str


@dataclass(frozen=True, slots=True)
class Written:
    """The keys of one container.

    Attributes:
        place: The container.
        lists: What it says; empty if it has none of the keys.
    """

    place: Place
    lists: KeyLists

    def field(self, key: str) -> str | None:
        """Return the path of a key, limits first."""
        for name in _LISTS:
            if key in self.lists.get(name, {}):
                return f'{self.place.path}.resources.{name}["{key}"]'
        return None

    def text(self, key: str) -> str | int:
        """Return the value of a key that is there, limits first.

        Raises:
            UserError: It is neither text nor a number.
        """
        value = next(self.lists[name][key] for name in _LISTS if key in self.lists.get(name, {}))
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise UserError(
                f"{value!r} is not a number; write a whole number", field=str(self.field(key))
            )
        return value

    def read(self, key: str) -> Number | None:
        """Return the number under a key, ``None`` if it is not there.

        Raises:
            UserError: Not a whole number, or negative.
        """
        field = self.field(key)
        if field is None:
            return None
        try:
            value = parse_integer(self.text(key))
        except ValueError as error:
            raise UserError(f"{error}; write a whole number", field=field) from error
        if value < 0:
            raise UserError(f"is {value}; write 0 or a positive number", field=field)
        return Number(value, field)


def find_keys(place: Place, keys: Collection[str]) -> Written:
    """Return what a container says under the given keys."""
    resources = place.container.resources
    found: KeyLists = {}
    if resources is not None:
        for name, values in (("limits", resources.limits), ("requests", resources.requests)):
            said = {key: values[key] for key in keys if key in values} if values else {}
            if said:
                found[name] = said
    return Written(place, found)


def list_written(pod: PodView, keys: Collection[str]) -> list[Written]:
    """Return what each container says that has any of the keys, in the order of their start."""
    return [written for place in list_places(pod) if (written := find_keys(place, keys)).lists]


def keep_written(found: Iterable[Written]) -> dict[str, KeyLists]:
    """Return it as `PodRequest.original` keeps it, by container."""
    return {written.place.container.name: written.lists for written in found}
