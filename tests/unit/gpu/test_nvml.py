"""Cards as NVML tells of them; NVML here is a small object with its functions."""

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hami_dra.contract.errors import RetryError
from hami_dra.gpu.facts import name_architecture, name_brand, normalize_bus_id, register_name
from hami_dra.gpu.nvml import NvmlSource
from hami_dra.gpu.topology import find_numa_node, find_pcie_root


class NvmlError(Exception):
    """As pynvml.NVMLError."""


class FakeNvml:
    """The functions of nvidia-ml-py that we call, over a list of cards."""

    NVMLError = NvmlError

    def __init__(self, count: int = 2) -> None:
        self.count = count
        self.broken: dict[int, str] = {}
        self.init: Callable[[], None] = lambda: None
        self.shutdowns = 0

    def nvmlInit(self) -> None:  # noqa: D102, N802 - NVML's name
        self.init()

    def nvmlShutdown(self) -> None:  # noqa: D102, N802
        self.shutdowns += 1

    def __getattr__(self, name: str) -> Callable[..., Any]:
        answers: dict[str, Callable[..., Any]] = {
            "nvmlSystemGetDriverVersion": lambda: b"580.95.05",
            "nvmlSystemGetCudaDriverVersion_v2": lambda: 13010,
            "nvmlDeviceGetCount": lambda: self.count,
            "nvmlDeviceGetHandleByIndex": self._handle,
            "nvmlDeviceGetCudaComputeCapability": lambda _: (9, 0),
            "nvmlDeviceGetPciInfo": lambda i: SimpleNamespace(busId=f"00000000:{i + 1:02X}:00.0"),
            "nvmlDeviceGetUUID": lambda i: f"GPU-{i}",
            "nvmlDeviceGetMinorNumber": lambda i: i + 4,
            "nvmlDeviceGetName": lambda _: "NVIDIA H100 80GB HBM3",
            "nvmlDeviceGetBrand": lambda _: 14,
            "nvmlDeviceGetMemoryInfo": lambda _: SimpleNamespace(total=(81559 << 20) + 12345),
        }
        return answers[name]

    def _handle(self, index: int) -> int:
        if index in self.broken:
            raise NvmlError(self.broken[index])
        return index


def source(nvml: FakeNvml, tmp_path: Path, **changes: Any) -> NvmlSource:
    return NvmlSource(Path("/"), sysfs=tmp_path, nvml=nvml, **changes)


async def test_a_card_is_described_in_published_units(tmp_path: Path) -> None:
    nvml = FakeNvml(1)

    found = await source(nvml, tmp_path).discover()

    (gpu,) = found.gpus
    assert (gpu.uuid, gpu.index, gpu.minor) == ("GPU-0", 0, 4)
    assert (gpu.memory_mib, gpu.pci_bus_id) == (81559, "0000:01:00.0")
    assert (gpu.product_name, gpu.brand) == ("NVIDIA H100 80GB HBM3", "Nvidia")
    assert (gpu.architecture, gpu.compute_capability) == ("Hopper", "9.0")
    assert (gpu.driver_version, gpu.cuda_driver_version) == ("580.95.05", "13.1")
    assert (gpu.pcie_root, gpu.numa_node) == (None, None)
    assert nvml.shutdowns == 1


async def test_a_card_that_fails_is_skipped_with_its_reason(tmp_path: Path) -> None:
    nvml = FakeNvml(3)
    nvml.broken[1] = "GPU is lost"

    found = await source(nvml, tmp_path).discover()

    assert [gpu.index for gpu in found.gpus] == [0, 2]
    assert [(gpu.index, gpu.reason) for gpu in found.skipped] == [(1, "GPU is lost")]


async def test_an_nvml_that_does_not_initialise_may_later(tmp_path: Path) -> None:
    nvml = FakeNvml(1)

    def fail() -> None:
        raise NvmlError("Driver Not Loaded")

    nvml.init = fail
    cards = source(nvml, tmp_path)
    with pytest.raises(RetryError, match="Driver Not Loaded"):
        await cards.discover()
    nvml.init = lambda: None

    assert len((await cards.discover()).gpus) == 1


async def test_an_nvml_that_hangs_costs_one_thread_and_no_more(tmp_path: Path) -> None:
    nvml = FakeNvml(1)
    release = threading.Event()

    def hang() -> None:
        release.wait(10)

    nvml.init = hang
    cards = source(nvml, tmp_path, timeout_seconds=0.05)
    with pytest.raises(RetryError, match="did not answer"):
        await cards.discover()
    with pytest.raises(RetryError, match="has not answered an earlier call"):
        await cards.discover()
    assert sum(thread.name == "nvml" for thread in threading.enumerate()) == 1
    release.set()


async def test_a_driver_root_without_nvml_is_named(tmp_path: Path) -> None:
    with pytest.raises(RetryError, match=rf"no libnvidia-ml.so.1 below {tmp_path}"):
        await NvmlSource(tmp_path, nvml=FakeNvml()).discover()


async def test_a_file_that_is_no_library_is_named(tmp_path: Path) -> None:
    library = tmp_path / "usr" / "lib64" / "libnvidia-ml.so.1"
    library.parent.mkdir(parents=True)
    library.write_text("no")
    with pytest.raises(RetryError, match="cannot be loaded"):
        await NvmlSource(tmp_path, nvml=FakeNvml()).discover()


def test_the_machine_shows_root_complex_and_numa_node(tmp_path: Path) -> None:
    real = tmp_path / "devices" / "pci0000:3a" / "0000:3a:00.0" / "0000:3b:00.0"
    real.mkdir(parents=True)
    (real / "numa_node").write_text("1\n")
    link = tmp_path / "bus" / "pci" / "devices" / "0000:3b:00.0"
    link.parent.mkdir(parents=True)
    link.symlink_to(real)

    assert find_pcie_root(tmp_path, "0000:3b:00.0") == "pci0000:3a"
    assert find_numa_node(tmp_path, "0000:3b:00.0") == 1


def test_a_machine_without_numa_nodes_has_none(tmp_path: Path) -> None:
    device = tmp_path / "bus" / "pci" / "devices" / "0000:3b:00.0"
    device.mkdir(parents=True)
    (device / "numa_node").write_text("-1\n")

    assert find_numa_node(tmp_path, "0000:3b:00.0") is None


@pytest.mark.parametrize(
    ("written", "registered"),
    [
        ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-40GB"),
        ("Tesla T4", "NVIDIA-Tesla T4"),
        ("GeForce RTX 3090", "NVIDIA-GeForce RTX 3090"),
    ],
)
def test_models_are_registered_as_hami_does(written: str, registered: str) -> None:
    assert register_name(written) == registered


@pytest.mark.parametrize(
    ("capability", "name"),
    [
        ((7, 0), "Volta"),
        ((7, 5), "Turing"),
        ((8, 0), "Ampere"),
        ((8, 9), "Ada Lovelace"),
        ((9, 0), "Hopper"),
        ((10, 0), "Blackwell"),
        ((12, 0), "Blackwell"),
        ((99, 0), "Unknown"),
    ],
)
def test_architectures(capability: tuple[int, int], name: str) -> None:
    assert name_architecture(*capability) == name


def test_a_brand_newer_than_our_list_is_unknown() -> None:
    assert (name_brand(2), name_brand(99)) == ("Tesla", "Unknown")


@pytest.mark.parametrize("text", ["", "3b:00.0", "zz:00:00.0"])
def test_what_is_no_pci_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a PCI address"):
        normalize_bus_id(text)
