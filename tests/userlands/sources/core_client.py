# SPDX-License-Identifier: Apache-2.0
"""cuda.core: a device, a stream with its pool, and more than the share."""

from cuda.bindings import driver
from cuda.core import Device
from cuda.core._utils.cuda_utils import CUDAError

MIB = 1 << 20


def free_mib():
    return driver.cuMemGetInfo()[1] // MIB


def main():
    device = Device(0)
    device.set_current()
    print(device.name)
    stream = device.create_stream()
    buffer = device.memory_resource.allocate(1024 * MIB, stream=stream)
    print("free", free_mib(), "MiB")
    try:
        device.memory_resource.allocate(2048 * MIB, stream=stream)
    except CUDAError as error:
        print("refused", str(error).partition(":")[0])
    buffer.close(stream)
    stream.sync()
    print("free", free_mib(), "MiB")


if __name__ == "__main__":
    main()
