"""The little that has to be known of a program or library before it is put into a container."""

import platform
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_IDENT: Final = struct.Struct("<4sBB10x")
_HEADER_64: Final = struct.Struct("<HHIQQQIHHHHHH")
_PROGRAM_64: Final = struct.Struct("<IIQQQQQQ")
_CLASS_64: Final = 2
_LITTLE_ENDIAN: Final = 1
_PT_INTERP: Final = 3
_LONGEST_INTERPRETER: Final = 4096
_MACHINES: Final = {"x86_64": 62, "aarch64": 183}
"""e_machine by ``uname -m`` (elf.h)."""
LOADERS: Final = frozenset({"/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"})
"""glibc's dynamic loader in every image that has one, by the ABI of each machine."""


@dataclass(frozen=True, slots=True)
class ElfFacts:
    """A 64-bit little-endian ELF file.

    Attributes:
        machine: e_machine.
        interpreter: Its dynamic loader; ``None`` for libraries and static programs.
    """

    machine: int
    interpreter: str | None


def read_elf(path: Path) -> ElfFacts | None:
    """Return the facts of a file; ``None`` if it is something else, cut off, or unreadable."""
    try:
        with path.open("rb") as file:
            head = file.read(_IDENT.size + _HEADER_64.size)
            magic, bits, order = _IDENT.unpack_from(head)
            if magic != b"\x7fELF" or bits != _CLASS_64 or order != _LITTLE_ENDIAN:
                return None
            header = _HEADER_64.unpack_from(head, _IDENT.size)
            machine, table, entry_size, entries = header[1], header[4], header[8], header[9]
            file.seek(table)
            programs = file.read(entry_size * entries)
            for number in range(entries):
                entry = _PROGRAM_64.unpack_from(programs, number * entry_size)
                if entry[0] == _PT_INTERP:
                    file.seek(entry[2])
                    raw = file.read(min(entry[5], _LONGEST_INTERPRETER))
                    return ElfFacts(machine, raw.rstrip(b"\0").decode(errors="replace"))
            return ElfFacts(machine, None)
    except (OSError, struct.error, OverflowError, ValueError):
        return None


def is_library_of(path: Path, machine: str | None = None) -> bool:
    """Whether a file is a library or program for ``uname -m`` (this machine without)."""
    facts = read_elf(path)
    expected = _MACHINES.get(machine or platform.machine())
    return facts is not None and expected in {None, facts.machine}
