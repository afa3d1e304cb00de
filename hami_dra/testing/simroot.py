"""``python -m hami_dra.testing.simroot DIRECTORY``: a host with simulated GPUs, for trials.

Prints the options of ``hami-dra node`` that go with it. Needs root, because it makes device nodes.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from hami_dra.testing.simgpu import A100, T4, SimCard, create_driver_root

_MODELS: Final = {"A100": A100, "T4": T4}
_LARGEST_BUS: Final = 0xFE


def make_cards(models: Sequence[str]) -> tuple[SimCard, ...]:
    """Return cards of models, each with a UUID, an address and a minor number of its own.

    Raises:
        KeyError: No such model.
    """
    return tuple(
        replace(
            _MODELS[model],
            uuid=f"{_MODELS[model].uuid[:-12]}{number:012x}",
            pci_bus_id=f"0000:{number + 1:02x}:00.0",
            minor=number,
            numa_node=number % 2,
        )
        for number, model in enumerate(models)
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the directory, or bring it up to date; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m hami_dra.testing.simroot")
    parser.add_argument("directory", type=Path)
    parser.add_argument(
        "--build", type=Path, default=Path("build/libvgpu"), help="Meson's build of libvgpu"
    )
    parser.add_argument(
        "--card", action="append", choices=sorted(_MODELS), help="repeatable; else A100 and T4"
    )
    options = parser.parse_args(arguments)
    models = options.card or ["A100", "T4"]
    if len(models) > _LARGEST_BUS:
        parser.error(f"at most {_LARGEST_BUS} cards")
    try:
        driver = create_driver_root(
            options.directory.resolve(), make_cards(models), options.build.resolve()
        )
    except OSError as error:
        parser.error(str(error))
    environment = " ".join(f"{name}={value}" for name, value in driver.environment().items())
    print(
        f"{environment} \\\n"
        f"hami-dra node --driver-root {driver.root} --sysfs {driver.sysfs_dir} \\\n"
        f"  --inject-path {driver.sim_dir}:/run/vgpu-sim:rw \\\n"
        f"  --libvgpu {options.build.resolve() / 'src' / 'libvgpu.so'} \\\n"
        "  --node-name NODE --kubeconfig KUBECONFIG"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
