"""Cards in parts as NVML tells of them, and makes and ends them.

Facts (nvml.h, NVIDIA MIG user guide): a GPU instance has memory and engines, a compute instance in
it is what programs open; profiles are known only while the card is in MIG mode; an instance whose
processes live cannot be ended (NVML_ERROR_IN_USE); instances do not outlive a reboot.
"""

import asyncio
import ctypes
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import pynvml

from hami_dra.contract.errors import RetryError
from hami_dra.gpu.daemon import run_in_daemon_thread
from hami_dra.gpu.library import NvmlLibrary
from hami_dra.policy.mig import Instance, MigFacts, Part, Place, Profile

_NO_ANSWER: Final = (3, 13)
"""NVML_ERROR_NOT_SUPPORTED: by the card; NVML_ERROR_FUNCTION_NOT_FOUND: by an older driver."""
_IN_USE: Final = 19
_NAME_PREFIX: Final = "MIG "
_SHARED_ENGINES: Final = 0
_WHOLE_SECONDS: Final = 30.0

T = TypeVar("T")


class InstanceRefusedError(RetryError):
    """The driver has not made an instance, and will not make it later for this call."""


class InstanceControl(Protocol):
    """Makes and ends the instances of this node's cards. Every call may be cancelled."""

    async def list_instances(self, uuid: str) -> tuple[Instance, ...]:
        """Return the GPU instances of a card, whoever made them.

        Raises:
            RetryError: The driver does not answer, here as below.
        """
        ...

    async def create_instance(self, place: Place, profile: int) -> int:
        """Make a GPU instance exactly there and return NVML's id of it.

        Raises:
            InstanceRefusedError: The place is taken, or the card does not allow it.
            RetryError: The driver does not answer; it may make the instance yet.
        """
        ...

    async def create_part(self, uuid: str, instance: int) -> Part:
        """Make the compute instance that takes all of a GPU instance."""
        ...

    async def destroy(self, uuid: str, instance: int) -> None:
        """End a GPU instance with all in it. Idempotent.

        Raises:
            RetryError: A process uses it.
        """
        ...

    async def enable(self, uuid: str) -> bool:
        """Switch a card to MIG mode; return whether it is now (some need a reset first)."""
        ...


def read_mig(nvml: Any, handle: Any) -> MigFacts | None:
    """Return what a card says of its parts, ``None`` if it or its driver knows none.

    Blocking, inside of an NVML session.

    Raises:
        NVMLError: The card does not answer.
    """
    read_at = time.monotonic()
    try:
        current, _ = nvml.nvmlDeviceGetMigMode(handle)
    except nvml.NVMLError as error:
        if getattr(error, "value", None) in _NO_ANSWER:
            return None
        raise
    if not current:
        return MigFacts(enabled=False, read_at=read_at)
    profiles = tuple(sorted(_read_profiles(nvml, handle), key=_by_size))
    return MigFacts(
        enabled=True,
        profiles=profiles,
        instances=tuple(_read_instances(nvml, handle, profiles)),
        read_at=read_at,
    )


class NvmlInstances:
    """`InstanceControl` by nvidia-ml-py, one call at a time.

    Args:
        driver_root: Where the driver is installed, as this process sees it.
        timeout_seconds: Longest time for a call; creating an instance takes a second or two.
        nvml: The nvidia-ml-py module, or something with its functions.
    """

    def __init__(
        self, driver_root: Path, *, timeout_seconds: float = _WHOLE_SECONDS, nvml: Any = pynvml
    ) -> None:
        self._library = NvmlLibrary(driver_root, nvml=nvml)
        self._timeout_seconds = timeout_seconds
        self._turn = asyncio.Lock()

    async def list_instances(self, uuid: str) -> tuple[Instance, ...]:
        """See `InstanceControl`."""
        return await self._call(
            f"card {uuid}: listing its MIG instances", lambda nvml: _list_instances(nvml, uuid)
        )

    async def create_instance(self, place: Place, profile: int) -> int:
        """See `InstanceControl`."""
        uuid, start, size = place
        what = f"card {uuid}: making a MIG instance of profile {profile} at slice {start}"

        def create(nvml: Any) -> int:
            handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
            where = nvml.c_nvmlGpuInstancePlacement_t(start, size)
            try:
                made = nvml.nvmlDeviceCreateGpuInstanceWithPlacement(
                    handle, profile, ctypes.byref(where)
                )
            except nvml.NVMLError as error:
                raise InstanceRefusedError(f"{what}: {error}") from error
            return int(nvml.nvmlGpuInstanceGetInfo(made).id)

        return await self._call(what, create)

    async def create_part(self, uuid: str, instance: int) -> Part:
        """See `InstanceControl`."""

        def create(nvml: Any) -> Part:
            handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
            made = nvml.nvmlDeviceGetGpuInstanceById(handle, instance)
            largest = max(
                _read_compute_profiles(nvml, made),
                key=lambda info: (info.sliceCount, info.multiprocessorCount),
            )
            part = nvml.nvmlGpuInstanceCreateComputeInstance(made, largest.id)
            number = int(nvml.nvmlComputeInstanceGetInfo(part).id)
            return next(p for p in _read_parts(nvml, handle, instance) if p.number == number)

        return await self._call(
            f"card {uuid}: making the compute instance of MIG instance {instance}", create
        )

    async def destroy(self, uuid: str, instance: int) -> None:
        """See `InstanceControl`."""

        def destroy(nvml: Any) -> None:
            handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
            try:
                found = nvml.nvmlDeviceGetGpuInstanceById(handle, instance)
            except nvml.NVMLError as error:
                if getattr(error, "value", None) == nvml.NVML_ERROR_NOT_FOUND:
                    return
                raise
            for part in _list_compute_instances(nvml, found):
                nvml.nvmlComputeInstanceDestroy(part)
            nvml.nvmlGpuInstanceDestroy(found)

        await self._call(f"card {uuid}: ending MIG instance {instance}", destroy)

    async def enable(self, uuid: str) -> bool:
        """See `InstanceControl`."""

        def enable(nvml: Any) -> bool:
            handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
            nvml.nvmlDeviceSetMigMode(handle, nvml.NVML_DEVICE_MIG_ENABLE)
            return bool(nvml.nvmlDeviceGetMigMode(handle)[0])

        return await self._call(f"card {uuid}: switching to MIG mode", enable)

    async def _call(self, what: str, work: Callable[[Any], T]) -> T:
        def run() -> T:
            with self._library.session() as nvml:
                try:
                    return work(nvml)
                except nvml.NVMLError as error:
                    used = getattr(error, "value", None) == _IN_USE
                    hint = "; a process still uses it (nvidia-smi shows which)" if used else ""
                    raise RetryError(f"{what}: {error}{hint}") from error

        try:
            async with self._turn, asyncio.timeout(self._timeout_seconds):
                return await asyncio.shield(run_in_daemon_thread("nvml-mig", run))
        except TimeoutError as error:
            raise RetryError(
                f"{what}: NVML did not answer within {self._timeout_seconds:g} s"
            ) from error


def _by_size(profile: Profile) -> tuple[int, int, int, str]:
    return profile.memory_mib, profile.slices, sum(profile.engines), profile.name


def _read_profiles(nvml: Any, handle: Any) -> Iterator[Profile]:
    for number in range(nvml.NVML_GPU_INSTANCE_PROFILE_COUNT):
        try:
            info = nvml.nvmlDeviceGetGpuInstanceProfileInfo(handle, number)
            starts = _read_starts(nvml, handle, info.id)
        except nvml.NVMLError as error:
            # INVALID_ARGUMENT: the driver is older than the list of profiles.
            if getattr(error, "value", None) in (*_NO_ANSWER, nvml.NVML_ERROR_INVALID_ARGUMENT):
                continue
            raise
        if not starts:
            continue
        yield Profile(
            name=_text(info.name).removeprefix(_NAME_PREFIX),
            number=int(info.id),
            memory_mib=int(info.memorySizeMB),
            slices=int(info.sliceCount),
            size=starts[0][1],
            starts=tuple(sorted(start for start, _ in starts)),
            instances=int(info.instanceCount),
            multiprocessors=int(info.multiprocessorCount),
            engines=(
                int(info.copyEngineCount),
                int(info.decoderCount),
                int(info.encoderCount),
                int(info.jpegCount),
                int(info.ofaCount),
            ),
        )


def _read_starts(nvml: Any, handle: Any, profile: int) -> list[tuple[int, int]]:
    count = ctypes.c_uint()
    nvml.nvmlDeviceGetGpuInstancePossiblePlacements(handle, profile, None, ctypes.byref(count))
    places = (nvml.c_nvmlGpuInstancePlacement_t * max(1, count.value))()
    nvml.nvmlDeviceGetGpuInstancePossiblePlacements(handle, profile, places, ctypes.byref(count))
    return [(int(place.start), int(place.size)) for place in places[: count.value]]


def _list_instances(nvml: Any, uuid: str) -> tuple[Instance, ...]:
    handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
    profiles = tuple(_read_profiles(nvml, handle))
    return tuple(_read_instances(nvml, handle, profiles))


def _read_instances(nvml: Any, handle: Any, profiles: tuple[Profile, ...]) -> Iterator[Instance]:
    found: dict[int, Instance] = {}
    for profile in profiles:
        count = ctypes.c_uint()
        listed = (nvml.c_nvmlGpuInstance_t * profile.instances)()
        nvml.nvmlDeviceGetGpuInstances(handle, profile.number, listed, ctypes.byref(count))
        for item in listed[: count.value]:
            info = nvml.nvmlGpuInstanceGetInfo(item)
            found[int(info.id)] = Instance(
                number=int(info.id),
                profile=int(info.profileId),
                start=int(info.placement.start),
                size=int(info.placement.size),
                slices=profile.slices,
                parts=tuple(_read_parts(nvml, handle, int(info.id))),
            )
    yield from (found[number] for number in sorted(found))


def _read_parts(nvml: Any, handle: Any, instance: int) -> list[Part]:
    """Return the compute instances of one GPU instance, as the devices that they are."""
    parts = []
    for index in range(int(nvml.nvmlDeviceGetMaxMigDeviceCount(handle))):
        try:
            device = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
        except nvml.NVMLError as error:
            if getattr(error, "value", None) == nvml.NVML_ERROR_NOT_FOUND:
                continue
            raise
        if int(nvml.nvmlDeviceGetGpuInstanceId(device)) != instance:
            continue
        attributes = nvml.nvmlDeviceGetAttributes(device)
        parts.append(
            Part(
                number=int(nvml.nvmlDeviceGetComputeInstanceId(device)),
                uuid=_text(nvml.nvmlDeviceGetUUID(device)),
                slices=int(attributes.computeInstanceSliceCount),
                multiprocessors=int(attributes.multiprocessorCount),
            )
        )
    return sorted(parts, key=lambda part: part.number)


def _read_compute_profiles(nvml: Any, instance: Any) -> Iterator[Any]:
    for number in range(nvml.NVML_COMPUTE_INSTANCE_PROFILE_COUNT):
        try:
            yield nvml.nvmlGpuInstanceGetComputeInstanceProfileInfo(
                instance, number, _SHARED_ENGINES
            )
        except nvml.NVMLError as error:
            if getattr(error, "value", None) in (*_NO_ANSWER, nvml.NVML_ERROR_INVALID_ARGUMENT):
                continue
            raise


def _list_compute_instances(nvml: Any, instance: Any) -> Iterator[Any]:
    for info in list(_read_compute_profiles(nvml, instance)):
        count = ctypes.c_uint()
        listed = (nvml.c_nvmlComputeInstance_t * max(1, int(info.instanceCount)))()
        nvml.nvmlGpuInstanceGetComputeInstances(instance, info.id, listed, ctypes.byref(count))
        yield from listed[: count.value]


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
