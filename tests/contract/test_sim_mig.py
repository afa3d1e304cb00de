"""nvidia-ml-py divides simulated cards as it divides real ones, over any number of processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hami_dra.testing.simgpu import A100, T4, DriverRoot, SimCard, create_driver_root, write_cards

REPOSITORY = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("HAMI_DRA_BUILD_DIR", REPOSITORY / "build/libvgpu"))

IN_USE, NO_RESOURCES, NOT_SUPPORTED, NOT_FOUND = 19, 23, 3, 6

PRELUDE = """
import ctypes, json, pynvml as n
n.nvmlInit()
card = n.nvmlDeviceGetHandleByIndex(0)

def profiles(card):
    found = {}
    for number in range(n.NVML_GPU_INSTANCE_PROFILE_COUNT):
        try:
            info = n.nvmlDeviceGetGpuInstanceProfileInfo(card, number)
        except n.NVMLError_NotSupported:
            continue
        count = ctypes.c_uint()
        n.nvmlDeviceGetGpuInstancePossiblePlacements(card, info.id, None, ctypes.byref(count))
        places = (n.c_nvmlGpuInstancePlacement_t * count.value)()
        n.nvmlDeviceGetGpuInstancePossiblePlacements(card, info.id, places, ctypes.byref(count))
        name = info.name if isinstance(info.name, str) else info.name.decode()
        found[name] = (info, [(p.start, p.size) for p in places])
    return found

def create(card, profile, start=None):
    info, places = profiles(card)[profile]
    if start is None:
        gi = n.nvmlDeviceCreateGpuInstance(card, info.id)
    else:
        size = places[0][1]
        place = n.c_nvmlGpuInstancePlacement_t(start, size)
        gi = n.nvmlDeviceCreateGpuInstanceWithPlacement(card, info.id, ctypes.byref(place))
    for number in range(n.NVML_COMPUTE_INSTANCE_PROFILE_COUNT):
        try:
            part = n.nvmlGpuInstanceGetComputeInstanceProfileInfo(gi, number, 0)
        except n.NVMLError_NotSupported:
            continue
        if part.sliceCount == info.sliceCount:
            return gi, n.nvmlGpuInstanceCreateComputeInstance(gi, part.id)
    raise LookupError(profile)

def code(call, *arguments):
    try:
        call(*arguments)
    except n.NVMLError as error:
        return error.value
    return 0

def devices(card):
    found = []
    for index in range(n.nvmlDeviceGetMaxMigDeviceCount(card)):
        try:
            found.append(n.nvmlDeviceGetMigDeviceHandleByIndex(card, index))
        except n.NVMLError_NotFound:
            pass
    return found
"""


def _start(base: Path, *cards: SimCard) -> DriverRoot:
    if not (BUILD / "sim/libnvidia-ml.so.1").exists():
        pytest.fail(f"{BUILD} is not built: meson setup build/libvgpu libvgpu")
    return create_driver_root(base / "driver", cards, BUILD)


def _run(driver: DriverRoot, program: str) -> Any:
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", PRELUDE + program],
        env={**os.environ, **driver.environment()},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def driver(tmp_path: Path) -> DriverRoot:
    """A host with a divided A100 and a T4."""
    return _start(tmp_path, replace(A100, mig=True), T4)


def test_profiles_and_places_are_those_of_the_guide(driver: DriverRoot) -> None:
    told = _run(
        driver,
        """
print(json.dumps({
    "mode": n.nvmlDeviceGetMigMode(card), "most": n.nvmlDeviceGetMaxMigDeviceCount(card),
    "other": code(n.nvmlDeviceGetMigMode, n.nvmlDeviceGetHandleByIndex(1)),
    "profiles": {name: [info.id, info.sliceCount, info.instanceCount, info.multiprocessorCount,
                        info.memorySizeMB, [start for start, _ in places]]
                 for name, (info, places) in profiles(card).items()}}))
""",
    )
    assert told["mode"] == [1, 1]
    assert told["most"] == 7
    assert told["other"] == NOT_SUPPORTED
    assert told["profiles"] == {
        "MIG 1g.5gb": [19, 1, 7, 14, 4864, [0, 1, 2, 3, 4, 5, 6]],
        "MIG 2g.10gb": [14, 2, 3, 28, 9984, [0, 2, 4]],
        "MIG 3g.20gb": [9, 3, 2, 42, 20224, [0, 4]],
        "MIG 4g.20gb": [5, 4, 1, 56, 20224, [0]],
        "MIG 7g.40gb": [0, 7, 1, 98, 40704, [0]],
        "MIG 1g.5gb+me": [20, 1, 1, 14, 4864, [0, 1, 2, 3, 4, 5, 6]],
        "MIG 1g.10gb": [15, 1, 4, 14, 9984, [0, 2, 4, 6]],
    }


@pytest.mark.parametrize(
    ("name", "memory_mib", "profiles"),
    [
        ("NVIDIA A30", 24576, {"1g.6gb", "1g.6gb+me", "2g.12gb", "2g.12gb+me", "4g.24gb"}),
        ("NVIDIA A100-SXM4-80GB", 81920, {"1g.10gb", "1g.20gb", "2g.20gb", "7g.80gb"}),
        ("NVIDIA H100 80GB HBM3", 81559, {"1g.10gb", "3g.40gb", "7g.80gb"}),
        ("NVIDIA H100 NVL", 95830, {"1g.12gb", "3g.47gb", "7g.94gb"}),
        ("NVIDIA GH200 480GB", 97871, {"1g.12gb", "3g.48gb", "7g.96gb"}),
        ("NVIDIA H200", 143771, {"1g.18gb", "1g.35gb", "2g.35gb", "3g.71gb", "7g.141gb"}),
        ("NVIDIA H20", 97871, {"1g.12gb", "7g.96gb"}),
        ("NVIDIA B200", 183359, {"1g.23gb", "2g.45gb", "3g.90gb", "7g.180gb"}),
    ],
)
def test_every_model_has_its_own_profiles(
    tmp_path: Path, name: str, memory_mib: int, profiles: set[str]
) -> None:
    driver = _start(tmp_path, replace(A100, name=name, memory_mib=memory_mib, mig=True))
    told = _run(driver, "print(json.dumps([name[4:] for name in profiles(card)]))")
    assert profiles <= set(told)


def test_instances_are_seen_and_ended_by_other_processes(driver: DriverRoot) -> None:
    made = _run(
        driver,
        """
gi, ci = create(card, "MIG 3g.20gb", 4)
print(json.dumps([n.nvmlGpuInstanceGetInfo(gi).id, n.nvmlComputeInstanceGetInfo(ci).id]))
""",
    )
    capability = driver.procfs_dir / f"driver/nvidia/capabilities/gpu0/mig/gi{made[0]}"
    assert (capability / "access").read_text().startswith("DeviceFileMinor: ")
    assert (capability / "ci0/access").exists()
    seen = _run(
        driver,
        """
(device,) = devices(card)
uuid = n.nvmlDeviceGetUUID(device)
info = n.nvmlDeviceGetAttributes(device)
parent = n.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device)
gi = n.nvmlDeviceGetGpuInstanceById(card, n.nvmlDeviceGetGpuInstanceId(device))
place = n.nvmlGpuInstanceGetInfo(gi).placement
print(json.dumps({
    "uuid": uuid, "name": n.nvmlDeviceGetName(device),
    "again": n.nvmlDeviceGetUUID(n.nvmlDeviceGetHandleByUUID(uuid)),
    "ids": [n.nvmlDeviceGetGpuInstanceId(device), n.nvmlDeviceGetComputeInstanceId(device)],
    "parent": n.nvmlDeviceGetUUID(parent), "is": n.nvmlDeviceIsMigDeviceHandle(device).value,
    "mib": n.nvmlDeviceGetMemoryInfo(device).total >> 20, "attributes": info.memorySizeMB,
    "place": [place.start, place.size]}))
""",
    )
    assert seen["uuid"].startswith("MIG-")
    assert seen == {
        "uuid": seen["again"],
        "name": "NVIDIA A100-SXM4-40GB MIG 3g.20gb",
        "again": seen["uuid"],
        "ids": made,
        "parent": A100.uuid,
        "is": 1,
        "mib": 20224,
        "attributes": 20224,
        "place": [4, 4],
    }
    ended = _run(
        driver,
        """
gi = n.nvmlDeviceGetGpuInstanceById(card, n.nvmlDeviceGetGpuInstanceId(devices(card)[0]))
early = code(n.nvmlGpuInstanceDestroy, gi)
n.nvmlComputeInstanceDestroy(n.nvmlGpuInstanceGetComputeInstanceById(gi, 0))
n.nvmlGpuInstanceDestroy(gi)
print(json.dumps([early, len(devices(card)), code(n.nvmlGpuInstanceGetInfo, gi)]))
""",
    )
    assert ended == [IN_USE, 0, 2]
    assert not capability.exists()


def test_what_overlaps_is_refused_and_so_is_a_second_with_media_engines(driver: DriverRoot) -> None:
    told = _run(
        driver,
        """
create(card, "MIG 2g.10gb", 2)
create(card, "MIG 1g.5gb+me", 6)
info = profiles(card)
print(json.dumps([
    code(create, card, "MIG 3g.20gb", 0), code(create, card, "MIG 1g.5gb", 3),
    code(create, card, "MIG 1g.5gb+me", 0), code(create, card, "MIG 1g.5gb", 0),
    n.nvmlDeviceGetGpuInstanceRemainingCapacity(card, info["MIG 1g.5gb"][0].id),
    n.nvmlDeviceGetGpuInstanceRemainingCapacity(card, info["MIG 3g.20gb"][0].id)]))
""",
    )
    assert told == [NO_RESOURCES, NO_RESOURCES, NO_RESOURCES, 0, 3, 0]


def test_the_mode_changes_only_on_an_empty_card(tmp_path: Path) -> None:
    driver = _start(tmp_path, A100)
    told = _run(
        driver,
        """
before = [n.nvmlDeviceGetMigMode(card)[0], code(create, card, "MIG 1g.5gb")]
n.nvmlDeviceSetMigMode(card, 1)
gi, ci = create(card, "MIG 1g.5gb")
print(json.dumps([before, n.nvmlDeviceGetMigMode(card)[0], code(n.nvmlDeviceSetMigMode, card, 0)]))
""",
    )
    assert told == [[0, NOT_SUPPORTED], 1, IN_USE]
    assert _run(driver, "print(json.dumps(len(devices(card))))") == 1


@pytest.mark.parametrize(
    ("fault", "call"),
    [
        ({"mig_create_error": 999}, 'code(create, card, "MIG 1g.5gb")'),
        (
            {"mig_destroy_error": 19},
            "[code(n.nvmlGpuInstanceDestroy, n.nvmlDeviceCreateGpuInstance(card, 19))][0]",
        ),
    ],
)
def test_faults_can_be_ordered(driver: DriverRoot, fault: dict[str, Any], call: str) -> None:
    write_cards(driver.sim_dir, [replace(A100, mig=True, **fault), T4])
    assert _run(driver, f"print(json.dumps({call}))") == next(iter(fault.values()))


def test_cuda_has_the_memory_of_the_instance_and_keeps_it_from_being_destroyed(
    driver: DriverRoot,
) -> None:
    _run(driver, 'create(card, "MIG 1g.10gb", 6)\nprint("0")')
    environment = {**os.environ, **driver.environment()}
    listed = subprocess.run(  # noqa: S603 - built here
        [BUILD / "probe/cuprobe", "devices", "--json"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    part, other = json.loads(listed.stdout)
    assert (part["cuda_total_mib"], part["nvml_total_mib"]) == (9984, 9984)
    assert other["cuda_total_mib"] == T4.memory_mib
    holder = subprocess.Popen(  # noqa: S603 - built here
        [BUILD / "probe/cuprobe", "hold", "9984"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "holding 9984 MiB\n"
        told = _run(
            driver,
            """
(device,) = devices(card)
gi = n.nvmlDeviceGetGpuInstanceById(card, n.nvmlDeviceGetGpuInstanceId(device))
ci = n.nvmlGpuInstanceGetComputeInstanceById(gi, 0)
print(json.dumps([code(n.nvmlComputeInstanceDestroy, ci),
                  n.nvmlDeviceGetMemoryInfo(card).used >> 20,
                  [[p.pid, p.gpuInstanceId] for p in n.nvmlDeviceGetComputeRunningProcesses(card)],
                  [p.pid for p in n.nvmlDeviceGetComputeRunningProcesses(device)]]))
""",
        )
        over = subprocess.run(  # noqa: S603 - built here
            [BUILD / "probe/cuprobe", "alloc", "1", "--json"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        holder.terminate()
        holder.wait(10)
        if holder.stdout is not None:
            holder.stdout.close()
    assert told == [IN_USE, 9984, [[holder.pid, 6]], [holder.pid]]
    assert json.loads(over.stdout)["allocations"][0]["result"] == "CUDA_ERROR_OUT_OF_MEMORY"


OURS = """
import asyncio, pathlib, sys
from hami_dra.contract.errors import RetryError
from hami_dra.gpu.mig import NvmlInstances
from hami_dra.gpu.nvml import NvmlSource
root = pathlib.Path(sys.argv[1])

async def main():
    source = NvmlSource(root, sysfs=root / "sys")
    control = NvmlInstances(root)
    async def look():
        first, second = (await source.discover()).gpus
        assert second.mig is None
        return first
    uuid = (await look()).uuid
    before = (await look()).mig.enabled
    switched = await control.enable(uuid)
    profiles = {p.name: p for p in (await look()).mig.profiles}
    number = await control.create_instance((uuid, 4, 4), profiles["3g.20gb"].number)
    try:
        await control.create_instance((uuid, 6, 1), profiles["1g.5gb"].number)
    except RetryError as error:
        refused = str(error)
    part = await control.create_part(uuid, number)
    seen = (await look()).mig.instances
    listed = await control.list_instances(uuid)
    await control.destroy(uuid, number)
    await control.destroy(uuid, number)
    print(json.dumps({
        "before": before, "switched": switched, "names": list(profiles), "refused": refused,
        "starts": profiles["2g.10gb"].starts, "engines": profiles["1g.5gb+me"].engines,
        "same": seen == listed,
        "place": [seen[0].number == number, seen[0].start, seen[0].size, seen[0].profile],
        "part": [part == seen[0].parts[0], part.slices, part.multiprocessors, part.uuid[:4]],
        "after": len(await control.list_instances(uuid))}))

asyncio.run(main())
"""


def test_our_own_reading_and_making_of_instances(tmp_path: Path) -> None:
    driver = _start(tmp_path, A100, T4)
    environment = {**os.environ, **driver.environment(), "PYTHONPATH": str(REPOSITORY)}
    environment.pop("LD_LIBRARY_PATH")
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", "import json" + OURS, str(driver.root)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told.pop("refused").endswith("Insufficient Resources")
    assert told == {
        "before": False,
        "switched": True,
        "names": [
            "1g.5gb", "1g.5gb+me", "1g.10gb", "2g.10gb", "3g.20gb", "4g.20gb", "7g.40gb",
        ],
        "starts": [0, 2, 4],
        "engines": [1, 1, 0, 1, 1],
        "same": True,
        "place": [True, 4, 4, 9],
        "part": [True, 3, 42, "MIG-"],
        "after": 0,
    }  # fmt: skip
