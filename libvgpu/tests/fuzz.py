# SPDX-License-Identifier: Apache-2.0
"""Run libFuzzer for a while on each kind of input that a tenant can write.

Usage: fuzz.py BUILD SECONDS. What is found stays in BUILD/found, and the corpus grows in
BUILD/corpus. A kind is the first byte of an input, see fuzz_files.c.
"""

import os
import subprocess
import sys
from pathlib import Path

KINDS = {"grant": 0, "region": 1, "shares": 2, "environment": 3}
LONGEST_BYTES = 400_000
"""A region has 336128."""
MEMORY = Path("/dev/shm")  # noqa: S108 - files of it make no disk busy; mkdtemp names the directory
HERE = Path(__file__).resolve().parent


def main() -> int:
    build, seconds = Path(sys.argv[1]).resolve(), int(sys.argv[2])
    programs, found = build / "tests", build / "found"
    seeds = build / "seeds"
    for directory in (found, seeds, build / "corpus/limits"):
        directory.mkdir(parents=True, exist_ok=True)
    environment = sorted((HERE / "corpus").iterdir())
    subprocess.run([programs / "fuzz-files", "--seeds", seeds, *environment], check=True)
    failed = fuzz(programs / "fuzz-limits-for-ever", build / "corpus/limits", found, seconds)
    for name, kind in KINDS.items():
        corpus = build / "corpus" / name
        corpus.mkdir(exist_ok=True)
        for seed in seeds.iterdir():
            data = seed.read_bytes()
            if data[0] == kind:
                (corpus / seed.name).write_bytes(data)
        failed += fuzz(programs / "fuzz-files-for-ever", corpus, found, seconds)
    return int(failed > 0)


def fuzz(program: Path, corpus: Path, found: Path, seconds: int) -> bool:
    print(f"==> {corpus.name}: {seconds} s", flush=True)
    done = subprocess.run(
        [
            program,
            *(f"-max_total_time={seconds}", f"-max_len={LONGEST_BYTES}", "-timeout=20"),
            *(f"-artifact_prefix={found}/{corpus.name}-", "-print_final_stats=1", "-print_funcs=0"),
            corpus,
        ],
        check=False,
        env={**os.environ, "TMPDIR": str(MEMORY)} if MEMORY.is_dir() else None,
    )
    return done.returncode != 0


if __name__ == "__main__":
    sys.exit(main())
