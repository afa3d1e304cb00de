"""JSON that a reader of YAML takes for what it is.

The API server reads the body of a server-side apply as YAML 1.1, of which JSON is nearly a part:
characters that YAML counts as unprintable are refused there, and those that it counts as line
breaks are folded, so that another text would be stored (https://yaml.org/spec/1.1, 4.1.1, 4.2).
"""

import re
from typing import Any, Final

import msgspec

_UNSAFE: Final = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


def encode_for_yaml(body: Any) -> bytes:
    """Return JSON with the same meaning in YAML 1.1."""
    encoded = msgspec.json.encode(body)
    if encoded.isascii() and b"\x7f" not in encoded:
        return encoded
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", encoded.decode()).encode()
