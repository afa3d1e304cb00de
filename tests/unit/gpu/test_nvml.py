"""Cards as NVML tells of them; NVML here is a small object with its functions."""

import asyncio
import os
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hami_dra.contract.errors import FatalError, RetryError
from hami_dra.gpu.facts import name_architecture, name_brand, normalize_bus_id, register_name
from hami_dra.gpu.nvml import NvmlSource
from hami_dra.gpu.topology import find_bound_devices, find_numa_node, find_pcie_root
from hami_dra.policy.devices import describe_device, describe_devices
from hami_dra.policy.health import CardVitals
from tests.unit.gpu.fakenvml import GPU_IS_LOST, MISMATCH, NOT_SUPPORTED, FakeNvml, NvmlError

WELL = CardVitals(0, remap_failed=False, recovery_action=0)
BUILD = Path(os.environ.get("HAMI_DRA_BUILD_DIR", "build/libvgpu"))


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
    assert (nvml.sessions, nvml.inits) == (0, 1)


async def test_a_card_that_fails_is_skipped_with_its_reason(tmp_path: Path) -> None:
    nvml = FakeNvml(3)
    nvml.cards[1].answers["GetHandleByIndex"] = NvmlError(GPU_IS_LOST, "GPU is lost")

    found = await source(nvml, tmp_path).discover()

    assert [gpu.index for gpu in found.gpus] == [0, 2]
    assert [(gpu.index, gpu.reason) for gpu in found.skipped] == [(1, "GPU is lost")]


async def test_an_nvml_that_does_not_initialise_may_later(tmp_path: Path) -> None:
    nvml = FakeNvml(1)

    def fail() -> None:
        raise NvmlError(9, "Driver Not Loaded")

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


async def test_a_card_that_hangs_costs_the_others_nothing(tmp_path: Path) -> None:
    nvml = FakeNvml(3)
    nvml.cards[1].hangs = True
    cards = source(nvml, tmp_path, card_timeout_seconds=2.0)
    with nvml.hanging():
        for reason in ("no answer within 2 s", "an earlier question has not been"):
            found = await cards.discover()
            assert [gpu.index for gpu in found.gpus] == [0, 2]
            assert found.skipped[0].hangs
            assert [(gpu.index, gpu.reason[: len(reason)]) for gpu in found.skipped] == [
                (1, reason)
            ]
        assert len(list_threads("nvml-cards")) == 1
        nvml.cards[1].hangs = False
    (thread,) = list_threads("nvml-cards")
    thread.join(5)
    found = await cards.discover()
    assert [gpu.index for gpu in found.gpus] == [0, 1, 2]
    assert nvml.sessions == 0


def list_threads(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == name]


async def test_cards_that_hang_are_given_up_together(tmp_path: Path) -> None:
    nvml = FakeNvml(6)
    for number in (1, 2, 4):
        nvml.cards[number].hangs = True
    cards = source(nvml, tmp_path, card_timeout_seconds=0.2)
    with nvml.hanging():
        found = await cards.discover()
        assert [gpu.index for gpu in found.gpus] == [0, 3, 5]
        assert [gpu.index for gpu in found.skipped if gpu.hangs] == [1, 2, 4]
        assert len(list_threads("nvml-cards")) == 3
    for thread in list_threads("nvml-cards"):
        thread.join(5)
    assert len((await cards.discover()).gpus) == 6


async def test_what_a_card_cannot_have_is_no_reason_to_skip_it(tmp_path: Path) -> None:
    nvml = FakeNvml(1)
    for question in ("GetMemoryInfo", "GetPciInfo", "GetBrand"):
        nvml.cards[0].answers[question] = NvmlError(NOT_SUPPORTED)
    for question in ("GetTotalEccErrors", "GetRemappedRows", "GetFieldValues"):
        nvml.cards[0].answers[question] = NvmlError(999)

    found = await source(nvml, tmp_path).discover()

    (gpu,) = found.gpus
    assert (gpu.memory_mib, gpu.pci_bus_id, gpu.brand) == (0, "", "Unknown")
    assert (gpu.pcie_root, gpu.numa_node) == (None, None)
    assert found.vitals == {"GPU-0": CardVitals()}
    attributes = describe_device(gpu, split_count=10)["attributes"]
    assert not [name for name in attributes if "pci" in name.lower()]


@pytest.mark.parametrize(
    ("question", "answer", "reason"),
    [
        ("GetMemoryInfo", NvmlError(999, "Unknown Error"), "Unknown Error"),
        ("GetUUID", "", "it has no UUID"),
        ("GetUUID", "GPU-0", "has the UUID GPU-0 of card 0"),
        ("GetPciInfo", object(), "'object' object has no attribute 'busId'"),
        ("GetMinorNumber", NvmlError(NOT_SUPPORTED, "Not Supported"), "Not Supported"),
        ("GetMinorNumber", KeyError(), "KeyError"),
    ],
)
async def test_a_card_with_odd_answers_is_skipped_alone(
    tmp_path: Path, question: str, answer: object, reason: str
) -> None:
    nvml = FakeNvml(2)
    nvml.cards[1].answers[question] = answer

    found = await source(nvml, tmp_path).discover()

    assert [gpu.uuid for gpu in found.gpus] == ["GPU-0"]
    assert [gpu.reason for gpu in found.skipped] == [reason]


async def test_cards_are_asked_for_their_health(tmp_path: Path) -> None:
    nvml = FakeNvml(2)
    answers = nvml.cards[1].answers
    answers["GetTotalEccErrors"] = 7
    answers["GetRemappedRows"] = (0, 1, 1, 1)
    answers["GetFieldValues"][0].value.uiVal = 2

    found = await source(nvml, tmp_path).discover()

    assert found.vitals == {
        "GPU-0": WELL,
        "GPU-1": CardVitals(7, remap_failed=True, recovery_action=2),
    }


async def test_each_look_finds_the_cards_anew_when_nobody_else_holds_nvml(tmp_path: Path) -> None:
    nvml = FakeNvml(2)
    cards = source(nvml, tmp_path)
    assert len((await cards.discover()).gpus) == 2
    removed = nvml.cards.pop()
    assert len((await cards.discover()).gpus) == 1
    nvml.cards.append(removed)
    assert len((await cards.discover()).gpus) == 2


async def test_a_driver_of_another_version_needs_a_new_process(tmp_path: Path) -> None:
    library = tmp_path / "usr/lib64/libnvidia-ml.so.1"
    library.parent.mkdir(parents=True)
    shutil.copyfile(BUILD / "sim/libnvidia-ml.so.1", library)
    nvml = FakeNvml(1)
    cards = NvmlSource(tmp_path, nvml=nvml)
    assert len((await cards.discover()).gpus) == 1

    def fail() -> None:
        raise NvmlError(MISMATCH, "Driver/library version mismatch")

    nvml.init = fail
    with pytest.raises(RetryError, match="version mismatch"):
        await cards.discover()
    replaced = library.with_name("new")
    shutil.copyfile(library, replaced)
    replaced.rename(library)
    with pytest.raises(FatalError, match="was replaced by another version"):
        await cards.discover()


def test_the_kernel_shows_what_the_driver_holds(tmp_path: Path) -> None:
    assert find_bound_devices(tmp_path) == frozenset()
    driver = tmp_path / "bus/pci/drivers/nvidia"
    (driver / "module").mkdir(parents=True)
    for name in ("0000:3b:00.0", "0000:86:00.0"):
        (driver / name).symlink_to("..")
    (driver / "bind").write_text("")
    assert find_bound_devices(tmp_path) == {"0000:3b:00.0", "0000:86:00.0"}


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


odd_answers = st.sampled_from(
    [
        ("GetHandleByIndex", NvmlError(GPU_IS_LOST)),
        ("GetUUID", b"GPU-\xff\xfe"),
        ("GetUUID", "GPU-0"),
        ("GetUUID", NvmlError(999)),
        ("GetName", "N" * 200),
        ("GetName", "Grafik \u00fc\u4e2d" * 20),
        ("GetName", b"\x00"),
        ("GetBrand", 4711),
        ("GetCudaComputeCapability", (99, 99)),
        ("GetCudaComputeCapability", None),
        ("GetMemoryInfo", NvmlError(NOT_SUPPORTED)),
        ("GetMemoryInfo", NvmlError(999)),
        ("GetPciInfo", NvmlError(NOT_SUPPORTED)),
        ("GetPciInfo", SimpleNamespace(busId="nowhere")),
        ("GetRemappedRows", NvmlError(NOT_SUPPORTED)),
        ("GetFieldValues", NvmlError(13)),
    ]
)


@given(st.lists(st.lists(odd_answers, max_size=3), min_size=2, max_size=5), st.data())
@settings(max_examples=60, deadline=None)
def test_cards_with_odd_answers_never_hide_the_sound_ones(
    oddities: list[list[tuple[str, Any]]], data: st.DataObject
) -> None:
    nvml = FakeNvml(len(oddities))
    sound = data.draw(st.sampled_from(range(len(oddities))))
    for index, odd in enumerate(oddities):
        for question, answer in odd if index != sound else ():
            nvml.cards[index].answers[question] = answer
    nvml.cards[sound].answers["GetUUID"] = "GPU-sound"

    found = asyncio.run(NvmlSource(Path("/"), sysfs=Path("/none"), nvml=nvml).discover())

    assert "GPU-sound" in [gpu.uuid for gpu in found.gpus]
    assert len(found.gpus) + len(found.skipped) == len(oddities)
    names = [device["name"] for device in describe_devices(found.gpus, split_count=10)]
    assert len(set(names)) == len(found.gpus)
    assert nvml.sessions == 0
