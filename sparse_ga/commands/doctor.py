"""`sparse-ga doctor`: what this machine has, and a self-test of under a minute."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import tempfile
import time
from importlib import metadata
from pathlib import Path

from sparse_ga.progress import Reporter

_PACKAGES = (
    "sparse_ga",
    "torch",
    "numpy",
    "scipy",
    "opencv-python-headless",
    "open3d",
    "pycolmap",
    "Pillow",
    "safetensors",
    "huggingface_hub",
    "viser",
)


def doctor(args: argparse.Namespace, reporter: Reporter) -> int:
    """Print versions, devices, memory, weights at hand, and how the self-test went; exit code 1 if it failed."""
    facts = {"python": platform.python_version(), "system": platform.platform()}
    facts |= {name: _version(name) for name in _PACKAGES}
    facts |= {"processors": str(os.cpu_count()), "memory": _memory(), "devices": _devices()}
    facts["temporary space"] = (
        f"{shutil.disk_usage(tempfile.gettempdir()).free / 1e9:.0f} GB in {tempfile.gettempdir()}"
    )
    facts |= {"descriptor weights": _descriptor_weights(), "compact weights": _compact_weights()}
    facts["MASt3R weights"] = _released_weights()
    passed, verdict = self_test()
    facts["self-test"] = verdict
    reporter.event("summary", passed=passed, **{name.replace(" ", "_"): text for name, text in facts.items()})
    if reporter.mode != "json":
        for name, text in facts.items():
            print(f"{name:<24} {text}")
    return 0 if passed else 1


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _memory() -> str:
    try:
        page, total = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PHYS_PAGES")
        free = os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return "unknown"
    return f"{page * total / 1e9:.1f} GB, {page * free / 1e9:.1f} GB free"


def _devices() -> str:
    import torch

    found = ["cpu"]
    if torch.cuda.is_available():
        found += [f"cuda:{n} ({torch.cuda.get_device_name(n)})" for n in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append("mps")
    return ", ".join(found)


def _descriptor_weights() -> str:
    from sparse_ga.predictors.loading import packaged_descriptors

    return "in the package" if packaged_descriptors().is_file() else "missing: install again"


def _compact_weights() -> str:
    from sparse_ga.predictors.compact import weights_folder

    there = (weights_folder() / "model.safetensors").is_file()
    return "in the package" if there else "not in this package; use the classical predictor, or mast3r"


def _released_weights() -> str:
    from huggingface_hub import try_to_load_from_cache

    from sparse_ga.network.hub import DEFAULT_NAME, WEIGHTS_FILE

    found = try_to_load_from_cache(DEFAULT_NAME, WEIGHTS_FILE)
    return found if isinstance(found, str) else "not fetched (`sparse-ga weights fetch` does; 2.7 GB, non-commercial)"


def self_test() -> tuple[bool, str]:
    """Reconstruct a tiny rendered scene from the truth with noise, and say how that went."""
    from sparse_ga.api import reconstruct
    from sparse_ga.synthetic.oracle import OraclePredictor
    from sparse_ga.synthetic.scene import SceneConfig, make_scene

    start = time.monotonic()
    try:
        scene = make_scene(SceneConfig(views=4, size=(128, 96), arc_deg=120.0))
        with tempfile.TemporaryDirectory() as folder:
            scene.write(Path(folder))
            predictor = OraclePredictor(scene, matching="matches", match_spacing=4)
            result = reconstruct(
                Path(folder) / "images", Path(folder) / "masks", cache=Path(folder) / "cache", predictor=predictor
            )
    except Exception as error:  # whatever is wrong with this machine is what the user wants to read
        return False, f"failed: {type(error).__name__}: {error}"
    seconds = time.monotonic() - start
    if not result.registered.all() or not len(result.points):
        return False, f"failed: {int(result.registered.sum())} of 4 views registered, {len(result.points)} points"
    return True, f"passed in {seconds:.1f} s"
