"""What a synthetic scene is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Motion = Literal["rotating", "orbit", "free"]
Background = Literal["texture", "none", "black", "white"]


@dataclass(frozen=True)
class SceneConfig:
    """What a synthetic scene is made of. Sizes are (width, height) in pixels."""

    shape: str = "blob"
    """blob, box, elongated, ring, mug or figure."""
    seed: int = 0
    """Varies shape, texture, background and jitter."""
    views: int = 16
    """Number of photographs."""
    size: tuple[int, int] = (512, 384)
    """Image size for landscape; swapped for portrait."""
    orientation: Literal["landscape", "portrait", "mixed"] = "landscape"
    """mixed alternates between the two, with one focal length."""
    motion: Motion = "rotating"
    """rotating: still camera, turning object; orbit: moving camera, all rigid; free: cameras anywhere around."""
    elevations_deg: tuple[float, ...] = (25.0,)
    """One ring of views per entry; views are dealt out evenly."""
    arc_deg: float = 360.0
    """Angle that each ring covers."""
    roll: Literal["upright", "half", "all"] = "upright"
    """half: every other camera upside down; all: any roll."""
    focal_px: float | None = None
    """Focal length; unset: 1.25 times the long side."""
    object_share: float = 0.22
    """Share of the image that the object covers on average; the object is kept inside the image all the same."""
    principal_offset_px: tuple[float, float] = (0.0, 0.0)
    """Principal point minus image centre, as after a crop."""
    background: Background = "texture"
    """texture: a static cluttered room; none, black, white: one colour."""
    texture: Literal["rich", "weak"] = "rich"
    """weak: hardly any structure on the object."""
    jitter_deg: float = 1.5
    """Standard deviation of the deviation from even spacing, and of where the camera points (a tenth of it)."""
    noise_levels: float = 1.5
    """Standard deviation of the sensor noise in grey levels."""
    mesh_resolution: int = 104
    """Grid points along each side of the grid that the mesh is made on."""

    def __post_init__(self) -> None:
        if self.views < 1:
            raise ValueError(f"SceneConfig.views: at least 1, got {self.views}")
        if not 0 < self.object_share < 1:
            raise ValueError(f"SceneConfig.object_share: between 0 and 1, got {self.object_share}")
        if not self.elevations_deg:
            raise ValueError("SceneConfig.elevations_deg: at least one ring")
