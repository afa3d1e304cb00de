"""Manifests as text: what kubectl reads, split into documents, and written for people.

YAML as Kubernetes reads it (1.1, without dates and numbers to base 60), or JSON.
"""

import json
import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import yaml

from hami_dra.contract.errors import UserError

_WIDTH: Final = 98
_INT: Final = re.compile(r"[-+]?(?:0b[01_]+|0[0-7_]+|0x[0-9a-fA-F_]+|0|[1-9][0-9_]*)\Z")
_FLOAT: Final = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?\Z"
    r"|[-+]?\.(?:inf|Inf|INF)\Z|\.(?:nan|NaN|NAN)\Z"
)
_NUMBERS: Final = {"tag:yaml.org,2002:int": _INT, "tag:yaml.org,2002:float": _FLOAT}
_DOUBTFUL: Final = re.compile(r"[yYnN]|[-+]?\.?[0-9][-+0-9A-Za-z_.:]*")
"""Text that another reader of YAML may take for a number or a truth value."""


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a file.

    Attributes:
        number: From 1, empty ones not counted.
        separator: The line before it, "" at the beginning of a file.
        text: As it was written.
        body: What it says; ``None`` if it is empty.
    """

    number: int
    separator: str
    text: str
    body: Any


class _Loader(yaml.SafeLoader):
    """Takes dates and numbers to base 60 for the text they are."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - the library's own way to say it
        first: [
            (tag, _NUMBERS.get(tag, pattern))
            for tag, pattern in resolvers
            if tag != "tag:yaml.org,2002:timestamp"
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class _Dumper(yaml.SafeDumper):
    """Writes every value in full, and quotes what somebody could misread."""

    def ignore_aliases(self, data: Any) -> bool:
        """Never point to another place."""
        del data
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = '"' if _DOUBTFUL.fullmatch(text) else "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def read_documents(text: str) -> Iterator[Document]:
    """Yield the documents of a file in their order.

    Raises:
        UserError: One of them is neither YAML nor JSON; its field is "document N".
    """
    if text.lstrip()[:1] in {"{", "["}:
        parts = _split_json(text)
        if parts is not None:
            yield from parts
            return
    number = 0
    for separator, part in _split_yaml(text):
        if all(line.lstrip()[:1] in {"", "#", "%"} for line in part.splitlines()):
            yield Document(number, separator, part, None)
            continue
        number += 1
        try:
            body = yaml.load(part, _Loader)  # noqa: S506 - a SafeLoader
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"cannot be read: {reason}", field=f"document {number}") from error
        yield Document(number, separator, part, body)


def _split_yaml(text: str) -> Iterator[tuple[str, str]]:
    separator = ""
    lines: list[str] = []
    for line in text.splitlines(keepends=True):
        if line.startswith("---") and not line[3:4].strip():
            if lines or separator:
                yield separator, "".join(lines)
            rest = line[3:].strip()
            content = bool(rest) and not rest.startswith("#")
            separator = "---\n" if content else line if line.endswith("\n") else f"{line}\n"
            lines = [f"{rest}\n"] if content else []
        else:
            lines.append(line)
    yield separator, "".join(lines)


def _split_json(text: str) -> list[Document] | None:
    decoder = json.JSONDecoder()
    found: list[Document] = []
    at = 0
    while at < len(text):
        try:
            body, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            return None  # YAML in braces, perhaps
        end += len(text[end:]) - len(text[end:].lstrip())
        found.append(Document(len(found) + 1, "---\n" if found else "", text[at:end], body))
        at = end
    return found


def write_document(body: Any) -> str:
    """Return an object as YAML.

    Raises:
        UserError: The object contains itself.
    """
    try:
        return yaml.dump(body, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)
    except RecursionError as error:
        raise UserError("contains itself, or is nested too deeply") from error


def write_comments(comments: Iterable[str]) -> str:
    """Return lines of comment; the blanks before a text indent all of it."""
    return "".join(f"# {line}\n" for comment in comments for line in _wrap(comment))


def _wrap(comment: str) -> list[str]:
    indent = comment[: len(comment) - len(comment.lstrip())]
    return textwrap.wrap(
        comment.strip(),
        _WIDTH,
        initial_indent=indent,
        subsequent_indent=f"{indent}    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
