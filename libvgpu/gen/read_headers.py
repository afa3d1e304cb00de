# SPDX-License-Identifier: Apache-2.0
"""Write the lists of driver functions from CUDA's and NVML's public headers.

Usage: read_headers.py OUT_DIRECTORY HEADER... with cuda.h, cudaEGL.h, cudaGL.h, cudaVDPAU.h, the
cuda…Typedefs.h and nvml.h of every version that the lists shall know. A developer's tool: the
build reads the lists alone, and needs no CUDA. The headers come with the packages
nvidia-cuda-runtime and nvidia-nvml-dev.

``cuda_names.txt`` has a line for each exported variant: its name, the name that cuGetProcAddress
is asked for, the CUDA version from which that is the answer, and ``ptsz`` or ``ptds`` if it is
the answer for per-thread default streams (``-`` otherwise). ``nvml_names.txt`` has names.
"""

import re
import sys
from collections import defaultdict
from pathlib import Path

PER_THREAD = ("ptsz", "ptds")
ALIASES = [("cuGraphInstantiateWithFlags", "cuGraphInstantiate", 12000, "")]
"""What cuda.h of a major version renames, without a typedef of its own in cudaTypedefs.h."""
WITHOUT_TYPEDEF = {"cuGetProcAddress_v2_ptsz"}
"""An inline function of cuda.h, not one of the driver."""
WINDOWS = {"cuWGLGetDevice"}
API_HEADERS = {"cuda.h", "cudaEGL.h", "cudaGL.h", "cudaVDPAU.h"}


def read_exported(header: str) -> set[str]:
    """Return the names that a cuda.h declares, or turns another name into."""
    text = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    names = set(re.findall(r"CUDAAPI\s+(cu[A-Z]\w+)\s*\(", text))
    names |= set(re.findall(r"#define\s+cu[A-Z]\w+\s+(cu[A-Z]\w+)\s*$", text, flags=re.MULTILINE))
    for kind, name in re.findall(r"__CUDA_API_(PTSZ|PTDS)\((cu[A-Z]\w+)\)", text):
        names |= {name, f"{name}_{kind.lower()}"}
    return names - WINDOWS


def read_versions(typedefs: str) -> set[tuple[str, int, str]]:
    """Return (base, since, suffix) of every typedef of a cudaTypedefs.h."""
    found = re.findall(r"PFN_(cu[A-Z]\w*?)_v(\d+)(?:_(ptsz|ptds))?\)", typedefs)
    return {(base, int(since), suffix) for base, since, suffix in found if base not in WINDOWS}


def pair(exported: set[str], versions: set[tuple[str, int, str]]) -> list[tuple]:
    """Return (name, base, since, suffix): the n-th version of a base is its n-th variant."""
    rows: list[tuple[str, str, int, str]] = list(ALIASES)
    grouped = defaultdict(list)
    for base, since, suffix in versions:
        grouped[base, suffix].append(since)
    for (base, suffix), sinces in grouped.items():
        ending = f"_{suffix}" if suffix else ""
        variants = sorted(
            (name for name in exported if re.fullmatch(rf"{base}(_v\d+)?{ending}", name)),
            key=lambda name: (len(name), name),
        )
        if len(variants) != len(sinces):
            sys.exit(f"{base}: versions {sorted(sinces)} do not pair with {variants}")
        rows += [(n, base, v, suffix) for n, v in zip(variants, sorted(sinces), strict=True)]
    left = exported - {row[0] for row in rows} - WITHOUT_TYPEDEF
    if left:
        sys.exit(f"without a typedef: {', '.join(sorted(left))}")
    return sorted(rows, key=lambda row: (row[1], row[2], row[3]))


def read_nvml(header: str) -> set[str]:
    """Return the functions that an nvml.h declares, the old variants of its macros as well."""
    text = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    return set(re.findall(r"DECLDIR\s+(nvml[A-Z]\w+)\s*\(", text))


def main() -> None:
    out, *paths = (Path(argument) for argument in sys.argv[1:])
    exported: set[str] = set()
    versions: set[tuple[str, int, str]] = set()
    nvml: set[str] = set()
    for path in paths:
        text = path.read_text()
        if path.name in API_HEADERS:
            exported |= read_exported(text)
        elif path.name == "cudaProfilerTypedefs.h":  # its header is in another package
            versions |= read_versions(text)
            exported |= {base for base, _since, _suffix in read_versions(text)}
        elif path.name.endswith("Typedefs.h"):
            versions |= read_versions(text)
        elif path.name == "nvml.h":
            nvml |= read_nvml(text)
        else:
            sys.exit(f"{path}: neither a header of the driver's API, nor its typedefs, nor nvml.h")
    rows = pair(exported, versions)
    lines = [f"{name} {base} {since} {suffix or '-'}" for name, base, since, suffix in rows]
    (out / "cuda_names.txt").write_text("\n".join([*lines, ""]))
    (out / "nvml_names.txt").write_text("\n".join([*sorted(nvml), ""]))


if __name__ == "__main__":
    main()
