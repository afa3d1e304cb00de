# SPDX-License-Identifier: Apache-2.0
"""numba-cuda: a context, arrays, and more than the share."""

import numpy as np
from numba import cuda
from numba.cuda.cudadrv.driver import CudaAPIError

MIB = 1 << 20


def main():
    context = cuda.current_context()
    print("total", context.get_memory_info().total // MIB, "MiB")
    array = cuda.to_device(np.arange(4))
    print("copied", array.copy_to_host().tolist())
    try:
        cuda.device_array(3000 * MIB, dtype=np.uint8)
    except CudaAPIError as error:
        print("refused", error.code.name)
    del array
    context.deallocations.clear()
    print("free", round(context.get_memory_info().free / MIB), "MiB")


if __name__ == "__main__":
    main()
