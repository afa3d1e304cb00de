"""NVML's library: which file it is, and whether it still fits the driver.

nvidia-ml-py opens the library by its bare SONAME; the dynamic loader compares that with what is
loaded already before it searches any directory. So the root's own file is loaded first.
"""

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pynvml

from hami_dra.contract.driverroot import NVML_SONAME, library_directories
from hami_dra.contract.errors import FatalError, RetryError

_NOT_SUPPORTED: Final = (3, 13)
"""NVML_ERROR_NOT_SUPPORTED: by the card; NVML_ERROR_FUNCTION_NOT_FOUND: by an older driver."""
_VERSION_MISMATCH: Final = 18
"""NVML_ERROR_LIB_RM_VERSION_MISMATCH: the kernel module is of another version."""


def find_library(driver_root: Path) -> Path | None:
    """Return ``libnvidia-ml.so.1`` below a root, if it is there."""
    candidates = (
        driver_root / directory / NVML_SONAME
        for directory in library_directories(platform.machine())
    )
    return next((path for path in candidates if path.exists()), None)


class NvmlLibrary:
    """NVML of one driver root. Every method blocks, for as long as a driver hangs.

    Attributes:
        nvml: The nvidia-ml-py module, or something with its functions.

    Args:
        driver_root: Where the driver is installed, as this process sees it. For "/" the dynamic
            loader finds the library, so LD_LIBRARY_PATH counts.
        nvml: See the attribute.
    """

    def __init__(self, driver_root: Path, *, nvml: Any = pynvml) -> None:
        self._driver_root = driver_root
        self._loaded: tuple[int, int] | None = None
        self.nvml = nvml

    @contextmanager
    def session(self) -> Iterator[Any]:
        """Initialise NVML for the length of a block and yield its functions.

        NVML counts: only the first session looks for cards, and only the last one's end forgets
        them.

        Raises:
            RetryError: It does not initialise; later it may.
            FatalError: The driver was replaced; only a new process can load its library.
        """
        nvml = self.nvml
        self._load()
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            self._check_replaced(error)
            raise RetryError(
                f"NVML does not initialise: {error}; is the NVIDIA driver loaded, and is its "
                f"library below {self._driver_root}?"
            ) from error
        try:
            yield nvml
        finally:
            nvml.nvmlShutdown()

    def is_unsupported(self, error: Exception) -> bool:
        """Whether NVML says that a card or the driver has no answer to a question."""
        return getattr(error, "value", None) in _NOT_SUPPORTED

    def _load(self) -> None:
        path = find_library(self._driver_root)
        if self._loaded is None:
            self._loaded = _identify(path)
        if self._driver_root == Path("/"):
            return
        if path is None:
            raise RetryError(
                f"no {NVML_SONAME} below {self._driver_root}; set --driver-root to where the "
                "NVIDIA driver is installed"
            )
        try:
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            self._loaded = None
            raise RetryError(f"{path} cannot be loaded: {error}") from error

    def _check_replaced(self, error: Exception) -> None:
        if getattr(error, "value", None) != _VERSION_MISMATCH:
            return
        now = _identify(find_library(self._driver_root))
        if now is not None and now != self._loaded:
            raise FatalError(
                f"the driver below {self._driver_root} was replaced by another version, whose "
                "library only a new process can load; it has to be started again"
            ) from error


def _identify(path: Path | None) -> tuple[int, int] | None:
    """Return what differs between two files at one path."""
    try:
        status = path.stat() if path is not None else None
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if status is not None else None
