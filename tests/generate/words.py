"""Every name that admission reads, found in the code, so that a new dialect is tried at once."""

import importlib
import pkgutil
import re
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any, Final, get_args

from hami_dra.contract import names
from hami_dra.contract.settings import AdmissionSettings, DialectName
from hami_dra.policy import dialects

ALL_DIALECTS: Final[tuple[DialectName, ...]] = get_args(DialectName)
_DOMAIN_NAME: Final = re.compile(r"[a-z0-9.-]+\.[a-z]+/[A-Za-z0-9_.-]+")
_MOST_NAME: Final = 63


def resource_keys(settings: AdmissionSettings) -> list[tuple[str, ...]]:
    """Return the resource names of each dialect that is switched on."""
    return [
        keys
        for name in settings.dialects
        if (keys := dialects.list_keys(AdmissionSettings(dialects=(name,), nvidia=settings.nvidia)))
    ]


def metadata_keys() -> list[str]:
    """Return everything in the contract and the dialects that may be an annotation or a label."""
    found = set(_texts(vars(names).values()))
    for module in pkgutil.iter_modules(dialects.__path__):
        loaded = importlib.import_module(f"{dialects.__name__}.{module.name}")
        found.update(_texts(vars(loaded).values()))
    return sorted(
        key
        for key in found
        if _DOMAIN_NAME.fullmatch(key) and len(key.partition("/")[2]) <= _MOST_NAME
    )


def _texts(values: Iterable[Any]) -> Iterator[str]:
    for value in values:
        if isinstance(value, str):
            # A prefix, such as that of what HAMi's scheduler writes, needs an end.
            yield f"{value}x" if value.endswith(("-", "/")) else value
        elif isinstance(value, tuple | frozenset | set):
            yield from _texts(value)
        elif isinstance(value, dict):
            yield from _texts(value)
            yield from _texts(value.values())
        elif is_dataclass(value) and not isinstance(value, type):
            yield from _texts(getattr(value, field.name) for field in fields(value))
