# SPDX-License-Identifier: Apache-2.0
"""fork, spawn, a fork server, threads, a program: as Python's libraries start them."""

import ctypes
import multiprocessing
import os
import subprocess
import sys
import threading


def square(number):
    return number * number


def main():
    for method in ("fork", "spawn", "forkserver"):
        with multiprocessing.get_context(method).Pool(3) as pool:
            print(method, pool.map(square, range(10)))
    child = os.fork()
    if not child:
        os._exit(4)
    print("child", os.WEXITSTATUS(os.waitpid(child, 0)[1]))
    numbers = []
    threads = [threading.Thread(target=numbers.append, args=(n,)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print("threads", sorted(numbers) == list(range(20)))
    print(subprocess.check_output(["echo", "program"], env={}, close_fds=True))
    abort = [sys.executable, "-c", "import os; os.abort()"]
    done = subprocess.run(abort, stderr=subprocess.PIPE, check=False)
    print("abort", done.returncode, done.stderr)
    print("strlen", ctypes.CDLL(None).strlen(b"four"))
    try:
        print(ctypes.CDLL(None).no_such_function_here)
    except AttributeError as error:
        print("symbol", str(error).rsplit(":")[-1].strip())


if __name__ == "__main__":
    main()
