"""Imports open3d on machines that lack libusb, which its Linux wheels link against but do not carry."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from types import ModuleType


@cache
def open3d() -> ModuleType:
    """The open3d module, imported on first use (it takes most of a second).

    On Linux the libusb of the `libusb-package` distribution is loaded first, so that no system package is needed for
    it. Raises `ImportError` naming the system libraries to install when a graphics library is missing too.
    """
    if sys.platform == "linux":
        import libusb_package

        library = libusb_package.get_library_path()
        if library is not None:
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    try:
        import open3d as module
    except (ImportError, OSError) as error:
        raise ImportError(
            f"open3d cannot be loaded ({error}); on Debian or Ubuntu install its system libraries with "
            "'apt-get install libgl1 libegl1 libx11-6 libgomp1 libudev1 libidn2-0'"
        ) from error
    return module
