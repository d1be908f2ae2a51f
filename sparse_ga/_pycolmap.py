"""Imports pycolmap without its signal handler: on SIGTERM it would print a stack trace and skip our farewell."""

from __future__ import annotations

import signal
import threading

_before = signal.getsignal(signal.SIGTERM)

import pycolmap  # noqa: E402

if _before is not None and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGTERM, _before)

__all__ = ["pycolmap"]
