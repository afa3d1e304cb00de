# SPDX-License-Identifier: Apache-2.0
"""What a program of its own finds of the card: by dlopen and ctypes, before and after a fork."""

import ctypes
import os
import sys

MIB = 1 << 20


def use(mib):
    cuda = ctypes.CDLL("libcuda.so.1")
    context, pointer = ctypes.c_void_p(), ctypes.c_uint64()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    for answer in (
        cuda.cuInit(0),
        cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0),
        cuda.cuCtxSetCurrent(context),
        cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)),
    ):
        if answer:
            return f"error {answer}"
    answer = cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(mib * MIB))
    return f"total {total.value // MIB}, {mib} MiB: {answer}"


def in_a_child(mib):
    sys.stdout.flush()
    child = os.fork()
    if not child:
        print(use(mib), flush=True)
        os._exit(0)
    os.waitpid(child, 0)


def main():
    fits, rest = map(int, sys.argv[1:])
    in_a_child(fits)
    print(use(fits))
    print(use(rest))
    print(use(1))


if __name__ == "__main__":
    main()
