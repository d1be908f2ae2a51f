"""`sparse-ga demo`: a rendered object, reconstructed and compared with the truth."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np

from sparse_ga.errors import InputError, OutputError
from sparse_ga.progress import Reporter


def demo(args: argparse.Namespace, reporter: Reporter) -> int:
    """Render, reconstruct, compare, write the outputs."""
    from sparse_ga.commands.jobs import JobRecord
    from sparse_ga.commands.run import DEFAULT_FORMATS, top_names, write_outputs
    from sparse_ga.config import make_config
    from sparse_ga.demo import DEMO_SCENE, DEMO_SETTINGS, run_demo
    from sparse_ga.io.export import check_output_folder
    from sparse_ga.predictors.loading import PredictorRecord, load_predictor

    out, predictor = Path(args.out), args.predictor or "classical"
    if args.views is not None and args.views < 2:
        raise InputError(f"--views {args.views}: a reconstruction needs at least two photographs")
    check_output_folder(out, DEFAULT_FORMATS, report=True)
    if not (out / "gt.json").is_file() and any((out / name).exists() for name in ("images", "masks")):
        raise InputError(f"{out}: holds images or masks that are not the demo's; choose another --out")
    scene = DEMO_SCENE if args.views is None else dataclasses.replace(DEMO_SCENE, views=args.views)
    reporter.info(f"rendering {scene.views} photographs of a turning object before a still background")
    try:
        result = run_demo(out, scene, predictor, reporter)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror}); choose another folder with --out") from None
    record = JobRecord(
        (str((out / "images").absolute()),),
        str((out / "masks").absolute()),
        None,
        None,
        {"predictor": predictor, **DEMO_SETTINGS},
        str(out.absolute()),
        PredictorRecord.of(load_predictor(predictor, make_config(DEMO_SETTINGS).forward)),
        {name: round(spent, 3) for name, spent in reporter.seconds.items()},
    )
    record.save(out / "cache")
    job = record.job(load=False)
    files = write_outputs(result.reconstruction, out, out / "cache", job)
    metrics = {
        name: float(value) if isinstance(value, (float, np.floating)) else value
        for name, value in {**dataclasses.asdict(result.cameras), **dataclasses.asdict(result.surface)}.items()
        if isinstance(value, (int, float, np.floating, np.integer))
    }
    reporter.event("summary", **metrics, off_object=result.off_object, files=[str(path) for path in files])
    if reporter.mode != "json":
        print(result.format())
        reporter.info(f"files  {', '.join(top_names(files, out))} in {out}")
    return 0 if result.reconstruction.registered.any() else 3
