"""`sparse-ga check`: what is wrong with photographs and masks, before any long work."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from sparse_ga.commands.jobs import parse_settings
from sparse_ga.config import load_config
from sparse_ga.inspection import Finding, inspect
from sparse_ga.io.images import find_images
from sparse_ga.io.masks import find_masks
from sparse_ga.progress import Reporter
from sparse_ga.stages import ingest

_WRONG = 2


def check(args: argparse.Namespace, reporter: Reporter) -> int:
    """Print findings, worst first; the exit code is 2 if the set cannot be reconstructed as it is."""
    overrides = parse_settings(args.set or [])
    if args.object is not None:
        overrides.setdefault("ingest", {})["object_id"] = args.object
    config = load_config(args.preset, overrides)
    paths = find_images(args.images[0] if len(args.images) == 1 else args.images)
    masks = find_masks(paths, args.masks)
    sources = [ingest.make_source(Path(path), mask, None) for path, mask in zip(paths, masks, strict=True)]
    with reporter.stage("check", len(sources), "image") as bar:
        findings = inspect(sources, config, bar.advance)
    if len(sources) < 2:
        findings.insert(0, Finding("error", "", "one photograph; a reconstruction needs at least two"))
    for finding in findings:
        reporter.event("finding", **dataclasses.asdict(finding))
    wrong = sum(finding.severity == "error" for finding in findings)
    doubtful = sum(finding.severity == "warning" for finding in findings)
    reporter.event("summary", images=len(sources), errors=wrong, warnings=doubtful)
    if reporter.mode != "json":
        for finding in findings:
            subject = f"{finding.name}: " if finding.name and finding.name not in finding.text else ""
            print(f"{finding.severity:<8} {subject}{finding.text}")
        print(f"{len(sources)} photographs, {wrong} errors, {doubtful} warnings")
    return _WRONG if wrong else 0
