# SPDX-License-Identifier: Apache-2.0
"""Fail if the library needs more than libc, or a symbol newer than GLIBC_2.17.

Usage: symbols.py libvgpu.so hooks.toml CPU READELF OBJDUMP, the programs for that CPU.
A library that asks for more keeps every program of an older container from starting.
Exports must be the hooks and no more.
"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

HIGHEST = (2, 17)
JUMPS = {"x86_64": r"jmp +\*%rcx", "aarch64": r"\tbr\tx16"}
"""How the stub goes on to the real function, by CPU."""


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main() -> int:
    library, hooks, cpu, readelf, objdump = sys.argv[1:6]
    failures = []
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", run(readelf, "-dW", library))
    if needed != ["libc.so.6"]:
        failures.append(f"needs {needed}, not only libc.so.6")
    table = run(readelf, "--dyn-syms", "-W", library)
    versions = {tuple(map(int, v.split("."))) for v in re.findall(r"@GLIBC_([\d.]+)", table)}
    if versions and max(versions) > HIGHEST:
        failures.append(f"needs GLIBC_{'.'.join(map(str, max(versions)))}")
    exported = {
        row.split()[7]
        for row in table.splitlines()
        if re.search(r" (FUNC|OBJECT|NOTYPE) +(GLOBAL|WEAK) +DEFAULT +\d+ ", row)
    }
    expected = {h["name"] for h in tomllib.loads(Path(hooks).read_text())["hook"]}
    if exported != expected | {"dlsym", "dlvsym"}:
        failures.append(f"exports differ: {sorted(exported ^ (expected | {'dlsym', 'dlvsym'}))}")
    stub = run(objdump, "-d", "--no-show-raw-insn", "--disassemble=dlsym", library)
    if not re.search(JUMPS[cpu], stub):
        failures.append("dlsym does not jump to the real one")
    for failure in failures:
        sys.stderr.write(f"{library}: {failure}\n")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
