"""Errors of loading weights: each names the file, what is wrong and how to mend it."""

from __future__ import annotations

from sparse_ga.errors import InputError


class CheckpointError(InputError):
    """A checkpoint that cannot be used; the base of all below."""


class CheckpointNotFound(CheckpointError):
    """No such file, folder or hub repository."""


class CheckpointUnavailable(CheckpointError):
    """On the hub, but the hub cannot be reached and nothing is cached."""


class CheckpointDamaged(CheckpointError):
    """Truncated, or bytes changed: a checksum, the container or a value is wrong."""


class UnsafeCheckpoint(CheckpointError):
    """A pickle that asks for more than tensors and plain values; nothing of it was run."""


class UnknownArchitecture(CheckpointError):
    """The checkpoint does not say which network it is for, or says one that is not built here."""


class KeyMismatch(CheckpointError):
    """Tensors are missing, or there are tensors that the network does not have."""


class ShapeMismatch(CheckpointError):
    """A tensor has another shape or type than the network's."""


class LicenceNotice(UserWarning):
    """Told once a process, when weights under a licence that restricts use are loaded."""


class UncheckedWeights(UserWarning):
    """Weights that came without any checksum were loaded: damage to a number in them would go unnoticed."""
