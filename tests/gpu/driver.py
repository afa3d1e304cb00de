"""The CUDA driver API, as far as these programs use it, through ctypes.

A program of its own, so that nothing stands between libvgpu and the driver but what a program has.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_int, c_size_t, c_uint, c_uint64, c_void_p
from typing import Any, Final

MIB: Final = 1 << 20
OUT_OF_MEMORY: Final = 2
_SM_COUNT: Final = 16
_KERNEL: Final = b"""
.version 6.0
.target sm_50
.address_size 64
.visible .entry busy_ns(.param .u64 amount)
{
	.reg .u64 %a, %i, %x;
	.reg .pred %p;
	ld.param.u64 %a, [amount];
	mov.u64 %i, 0;
	mov.u64 %x, 88172645463325252;
again:
	mad.lo.u64 %x, %x, 6364136223846793005, 1442695040888963407;
	add.u64 %i, %i, 1;
	setp.lt.u64 %p, %i, %a;
	@%p bra again;
	setp.eq.u64 %p, %x, 1;
	@%p trap;
	ret;
}
"""
"""Rounds of arithmetic, `amount` of them; the simulated driver takes it for nanoseconds."""


class CudaError(Exception):
    """What the driver answered."""

    def __init__(self, function: str, code: int) -> None:
        super().__init__(f"{function} answered {code}")
        self.code = code


class _Location(ctypes.Structure):
    _fields_ = (("type", c_int), ("id", c_int))


class _AllocationProp(ctypes.Structure):
    _fields_ = (
        ("type", c_int),
        ("handle_types", c_int),
        ("location", _Location),
        ("win32", c_void_p),
        ("flags", ctypes.c_ubyte * 8),
    )


class Driver:
    """A context on the first card.

    Raises:
        OSError: There is no libcuda.so.1.
        CudaError: There is no card, or it is not to be had.
    """

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libcuda.so.1")
        self.call("cuInit", 0)
        device, context = c_int(), c_void_p()
        self.call("cuDeviceGet", byref(device), 0)
        self.call("cuDevicePrimaryCtxRetain", byref(context), device)
        self.call("cuCtxSetCurrent", context)
        self.device = device.value

    def call(self, function: str, *arguments: Any) -> None:
        """Call a function of the driver.

        Raises:
            CudaError: It did not answer CUDA_SUCCESS.
        """
        code = int(getattr(self._library, function)(*arguments))
        if code:
            raise CudaError(function, code)

    # ---- what there is

    def name(self) -> str:
        """Return the card's product name."""
        text = ctypes.create_string_buffer(128)
        self.call("cuDeviceGetName", text, 128, self.device)
        return text.value.decode()

    def uuid(self) -> str:
        """Return the card's UUID as NVML writes it."""
        raw = (ctypes.c_ubyte * 16)()
        self.call("cuDeviceGetUuid", raw, self.device)
        text = bytes(raw).hex()
        parts = (text[:8], text[8:12], text[12:16], text[16:20], text[20:])
        return "GPU-" + "-".join(parts)

    def version(self) -> int:
        """Return the newest CUDA version that the driver has."""
        version = c_int()
        self.call("cuDriverGetVersion", byref(version))
        return version.value

    def memory(self) -> tuple[int, int]:
        """Return the free and the total bytes of the card, as programs see it."""
        free, total = c_size_t(), c_size_t()
        self.call("cuMemGetInfo_v2", byref(free), byref(total))
        return free.value, total.value

    # ---- memory

    def allocate(self, kind: str, size: int) -> int:
        """Take memory, for good, and return its address or handle.

        Args:
            kind: plain, managed, stream or handles.
            size: Bytes.

        Raises:
            CudaError: There is no more.
        """
        pointer = c_uint64()
        if kind == "plain":
            self.call("cuMemAlloc_v2", byref(pointer), c_size_t(size))
        elif kind == "managed":
            self.call("cuMemAllocManaged", byref(pointer), c_size_t(size), c_uint(1))
        elif kind == "stream":
            self.call("cuMemAllocAsync", byref(pointer), c_size_t(size), None)
        elif kind == "handles":
            prop = _AllocationProp(type=1, location=_Location(1, self.device))
            self.call("cuMemCreate", byref(pointer), c_size_t(size), byref(prop), c_uint64(0))
        else:
            raise ValueError(f"{kind!r} is no kind of memory")
        return pointer.value

    def remembers(self, pointer: int, size: int) -> bool:
        """Write to memory on the card, and say whether the host reads the same from it."""
        back = (ctypes.c_ubyte * size)()
        self.call("cuMemsetD8_v2", c_uint64(pointer), ctypes.c_ubyte(0x5A), c_size_t(size))
        self.call("cuMemcpyDtoH_v2", back, c_uint64(pointer), c_size_t(size))
        return bytes(back) == b"\x5a" * size

    # ---- work

    def load_kernel(self) -> c_void_p:
        """Return a function that does as many rounds as it is told."""
        module, function = c_void_p(), c_void_p()
        self.call("cuModuleLoadData", byref(module), _KERNEL)
        self.call("cuModuleGetFunction", byref(function), module, b"busy_ns")
        return function

    def create_stream(self) -> c_void_p:
        """Return a stream that does not wait for the default one."""
        stream = c_void_p()
        self.call("cuStreamCreate", byref(stream), c_uint(1))
        return stream

    def launch(self, function: c_void_p, amount: int, stream: c_void_p) -> None:
        """Launch a kernel that fills the card."""
        count = c_int()
        self.call("cuDeviceGetAttribute", byref(count), _SM_COUNT, self.device)
        value = c_uint64(amount)
        params = (c_void_p * 1)(ctypes.cast(byref(value), c_void_p))
        shape = (c_uint(count.value * 8), c_uint(1), c_uint(1), c_uint(256), c_uint(1), c_uint(1))
        self.call("cuLaunchKernel", function, *shape, c_uint(0), stream, params, None)

    def synchronise(self, stream: c_void_p) -> None:
        """Wait for a stream."""
        self.call("cuStreamSynchronize", stream)

    def capture(self, function: c_void_p, amount: int, count: int, stream: c_void_p) -> c_void_p:
        """Return an executable graph of some kernels in a row."""
        graph, executable = c_void_p(), c_void_p()
        self.call("cuStreamBeginCapture_v2", stream, 0)
        for _ in range(count):
            self.launch(function, amount, stream)
        self.call("cuStreamEndCapture", stream, byref(graph))
        self.call("cuGraphInstantiateWithFlags", byref(executable), graph, c_uint64(0))
        return executable

    def launch_graph(self, executable: c_void_p, stream: c_void_p) -> None:
        """Launch a graph."""
        self.call("cuGraphLaunch", executable, stream)

    def time_kernel(self, function: c_void_p, amount: int, stream: c_void_p) -> float:
        """Return the nanoseconds that a kernel takes, by the driver's events."""
        begin, end, milliseconds = c_void_p(), c_void_p(), ctypes.c_float()
        for event in (begin, end):
            self.call("cuEventCreate", byref(event), c_uint(0))
        self.launch(function, amount, stream)  # loads it
        self.synchronise(stream)
        self.call("cuEventRecord", begin, stream)
        self.launch(function, amount, stream)
        self.call("cuEventRecord", end, stream)
        self.synchronise(stream)
        self._library.cuEventElapsedTime.argtypes = [POINTER(ctypes.c_float), c_void_p, c_void_p]
        self.call("cuEventElapsedTime", byref(milliseconds), begin, end)
        return milliseconds.value * 1e6


class _Memory(ctypes.Structure):
    _fields_ = (("total", c_uint64), ("free", c_uint64), ("used", c_uint64))


def used_by_all(uuid: str) -> float | None:
    """Return the MiB that NVML says are used of a card; ``None`` if there is no NVML."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    device, memory = c_void_p(), _Memory()
    if nvml.nvmlInit_v2() != 0:
        return None
    try:
        if nvml.nvmlDeviceGetHandleByUUID(uuid.encode(), byref(device)) != 0:
            return None
        if nvml.nvmlDeviceGetMemoryInfo(device, byref(memory)) != 0:
            return None
        return int(memory.used) / MIB
    finally:
        nvml.nvmlShutdown()
