"""What happens to an expression's text before cel-python parses it.

Each string literal becomes its number: the parser never sees what people wrote between quotes,
whose escapes it does not read as the API server does. ``.?field`` and ``[?key]`` become calls,
because its grammar does not have them.
"""

import re
from dataclasses import dataclass
from typing import Final

OPTIONAL_FIELD: Final = "optSelect__"
OPTIONAL_INDEX: Final = "optIndex__"

_TOKEN: Final = re.compile(
    r"""
    [rR](?:\"\"\"(?P<raw1>.*?)\"\"\"|'''(?P<raw2>.*?)'''|"(?P<raw3>[^"\n]*)"|'(?P<raw4>[^'\n]*)')
    |(?P<bytes>(?:[bB][rR]?|[rR][bB])["'])
    |\"\"\"(?P<text1>(?:[^\\]|\\.)*?)\"\"\"|'''(?P<text2>(?:[^\\]|\\.)*?)'''
    |"(?P<text3>(?:[^"\\\n]|\\.)*)"|'(?P<text4>(?:[^'\\\n]|\\.)*)'
    |(?P<blank>//[^\n]*|[\s]+)
    |\.\s*\?\s*(?P<field>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<word>[A-Za-z_][A-Za-z0-9_]*|[0-9]+)
    |(?P<other>.)
    """,
    re.DOTALL | re.VERBOSE,
)
_ESCAPE: Final = re.compile(
    r"\\(?:[xX]([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-3][0-7]{2})|(.))",
    re.DOTALL,
)
_ENDS_VALUE: Final = re.compile(r"[\w\])}\"]$")
_BASES: Final = (16, 16, 16, 8)
_SIMPLE: Final = dict(zip("abfnrtv\\?\"'`", "\a\b\f\n\r\t\v\\?\"'`", strict=True))
_MOST: Final = 0x10FFFF
_SURROGATES: Final = range(0xD800, 0xE000)


class UnknownError(Exception):
    """The expression has something that is not known here; the API server may well know it."""


def take_strings(expression: str) -> tuple[str, list[str]]:
    """Return the text for the parser, and the strings by their numbers.

    Raises:
        UnknownError: A part cannot be read here.
    """
    rewriter = _Rewriter()
    for match in _TOKEN.finditer(expression):
        rewriter.take(str(match.lastgroup), match)
    return "".join(rewriter.out), rewriter.strings


class _Rewriter:
    def __init__(self) -> None:
        self.out: list[str] = []
        self.strings: list[str] = []
        self._previous = ""
        self._brackets: list[_Bracket] = []

    def take(self, kind: str, match: re.Match[str]) -> None:
        """Append one token."""
        if kind == "blank":
            self.out.append(" ")
            return
        text = self._rewrite(kind, match)
        self.out.append(text)
        self._previous = text

    def _rewrite(self, kind: str, match: re.Match[str]) -> str:
        if kind == "bytes":
            raise UnknownError("bytes cannot be evaluated here")
        if kind.startswith("raw"):
            return self._keep(match[kind])
        if kind.startswith("text"):
            return self._keep(_unescape(match[kind]))
        if kind == "field":
            return f".{OPTIONAL_FIELD}({self._keep(match['field'])})"
        if match[0] in {'"', "'"}:
            raise UnknownError("cannot be parsed here: a string does not end")
        return self._rewrite_bracket(match[0])

    def _keep(self, string: str) -> str:
        self.strings.append(string)
        return f'"{len(self.strings) - 1}"'

    def _rewrite_bracket(self, text: str) -> str:
        if text == "[":
            indexes = _ENDS_VALUE.search(self._previous) is not None
            self._brackets.append(_Bracket(len(self.out), indexes))
        elif text == "?" and self._previous == "[":
            bracket = self._brackets[-1]
            if not bracket.indexes:
                raise UnknownError("optional elements of lists cannot be evaluated here")
            bracket.optional = True
            self.out[bracket.place] = f".{OPTIONAL_INDEX}("
            return ""
        elif text == "]" and self._brackets and self._brackets.pop().optional:
            return ")"
        return text


@dataclass(slots=True)
class _Bracket:
    """An open ``[``: where it stands, whether it follows a value, whether ``?`` follows it."""

    place: int
    indexes: bool
    optional: bool = False


def _unescape(text: str) -> str:
    return _ESCAPE.sub(_read_escape, text.replace("\r\n", "\n").replace("\r", "\n"))


def _read_escape(match: re.Match[str]) -> str:
    for digits, base in zip(match.groups()[:4], _BASES, strict=True):
        code = int(digits, base) if digits is not None else -1
        if 0 <= code <= _MOST and code not in _SURROGATES:
            return chr(code)
    if match[5] in _SIMPLE:
        return _SIMPLE[match[5]]
    raise UnknownError(f"cannot be parsed here: {match[0]!r} means nothing in a string")
