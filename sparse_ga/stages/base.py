"""What a stage is: a name, a version, its inputs, and the configuration that affects its output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

from sparse_ga.config import Config, output_fields
from sparse_ga.store import Key, digest_of

Unit = Literal["view", "pair", "run"]


@dataclass(frozen=True)
class Stage:
    """Identity of a stage.

    Raise `version` when the stage's output changes for the same inputs: artifacts of earlier versions count as missing.
    """

    name: str
    version: int
    unit: Unit  # one artifact for each view, each pair, or for the whole run
    inputs: tuple[str, ...]  # names of the stages whose artifacts it reads
    config: tuple[str, ...] = ()  # sections, or section.field, that affect the output

    def key(self, label: str, config: Config, inputs: dict[str, str]) -> Key:
        """Key of one artifact; `inputs` are digests by name."""
        return Key(self.name, self.version, label, self.config_values(config), inputs)

    def config_values(self, config: Config) -> dict[str, Any]:
        """The configuration values in the key, by dotted name."""
        values: dict[str, Any] = {}
        for path in self.config:
            found = reduce(getattr, path.split("."), config)
            if "." in path:
                values[path] = found
            else:
                values |= {f"{path}.{name}": value for name, value in output_fields(found).items()}
        return values


def versions_digest(stages: Sequence[Stage]) -> str:
    """Digest of the stages' versions: for keys of what goes through them without having their artifacts as inputs."""
    return digest_of(*(f"{stage.name} {stage.version}" for stage in stages))
