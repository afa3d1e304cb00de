"""Every name that admission reads, found in the code, so that a new dialect is tried at once."""

import importlib
import pkgutil
import re
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Final, get_args

import yaml
from msgspec.structs import replace

from hami_dra.contract import names
from hami_dra.contract.settings import AdmissionSettings, DialectName, decode_settings
from hami_dra.contract.vendorsettings import Vendor
from hami_dra.policy import dialects

_VENDORS: Final = Path(__file__).parents[2] / "deploy" / "vendors.yaml"
CONFIGURATION: Final[dict[str, Any]] = {
    "dialects": list(get_args(DialectName)),
    **yaml.safe_load(_VENDORS.read_text()),
}
"""All that can be switched on."""
EVERYTHING: Final = decode_settings(CONFIGURATION)
_DOMAIN_NAME: Final = re.compile(r"[a-z0-9.-]+\.[a-z]+/[A-Za-z0-9_.-]+")
_MOST_NAME: Final = 63


def resource_keys(settings: AdmissionSettings) -> list[tuple[str, ...]]:
    """Return the resource names of each dialect that is switched on, and of each vendor."""
    one = [replace(settings, dialects=(name,), vendors=()) for name in settings.dialects]
    words = [
        (*dialects.list_keys(each), *(f"{text}1g.5gb" for text in dialects.list_prefixes(each)))
        for each in one
    ]
    rows = [vendor.keys for vendor in settings.vendors]
    return [keys for keys in (*words, *rows) if keys]


def metadata_keys(settings: AdmissionSettings = EVERYTHING) -> list[str]:
    """Return everything in the contract and the dialects that may be an annotation or a label."""
    found = set(_texts(vars(names).values()))
    for module in pkgutil.iter_modules(dialects.__path__):
        loaded = importlib.import_module(f"{dialects.__name__}.{module.name}")
        found.update(_texts(vars(loaded).values()))
    chosen = {
        key
        for key in found
        if _DOMAIN_NAME.fullmatch(key) and len(key.partition("/")[2]) <= _MOST_NAME
    }
    chosen.update(dialects.list_annotations(settings), *(_wishes(row) for row in settings.vendors))
    return sorted(chosen)


def _wishes(vendor: Vendor) -> Iterator[str]:
    return (annotation.key for annotation in vendor.annotations)


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
