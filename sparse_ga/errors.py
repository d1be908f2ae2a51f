"""Errors that are the user's to mend: one line that names the cause and the remedy, never a traceback."""

from __future__ import annotations


class InputError(ValueError):
    """Photographs, masks, cameras or arguments that cannot be used; says which, what is wrong and how to mend it."""


class OutputError(RuntimeError):
    """Something that cannot be written (disk full, no permission); what is already in the cache stays intact."""


class UnusedCameras(UserWarning):
    """Cameras were given that fit no photograph."""
