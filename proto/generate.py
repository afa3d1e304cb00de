# ruff: noqa: INP001 - a script beside the files that it reads, not a package
"""Generate ``hami_dra/_pb`` from the .proto files beside this script.

Run ``python proto/generate.py`` after a change and commit what it wrote; a unit test compares.
The compiler is the pinned grpcio-tools. Service stubs are not generated: services are registered
by name (`grpc.method_handlers_generic_handler`), so nothing generated imports grpc.
"""

import argparse
import sys
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent


def generate(output: Path) -> None:
    """Write the messages and their type stubs below ``output``.

    Raises:
        RuntimeError: The compiler refused a file; its own message is on stderr.
    """
    output.mkdir(parents=True, exist_ok=True)
    sources = [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("hami_dra/_pb/*.proto"))]
    arguments = ["protoc", f"-I{ROOT}", f"--python_out={output}", f"--pyi_out={output}", *sources]
    status = protoc.main(arguments)
    if status:
        raise RuntimeError(f"protoc ended with {status} on {sources}")


def main() -> int:
    """Generate into the checkout, or where ``--output`` says."""
    parser = argparse.ArgumentParser(description="generate hami_dra/_pb")
    parser.add_argument("--output", type=Path, default=ROOT.parent)
    generate(parser.parse_args().output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
