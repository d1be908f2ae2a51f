"""`sparse-ga check`: what is wrong with photographs and masks, before any long work."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from sparse_ga.commands.jobs import merge, parse_settings
from sparse_ga.commands.run import parse_object
from sparse_ga.config import Config, load_config
from sparse_ga.inspection import ORDER, Finding, inspect
from sparse_ga.io.images import find_images
from sparse_ga.io.masks import find_masks
from sparse_ga.objects import find_objects
from sparse_ga.progress import Reporter
from sparse_ga.stages import ingest
from sparse_ga.stages.ingest import Source

_WRONG = 2


def check(args: argparse.Namespace, reporter: Reporter) -> int:
    """Print findings, worst first; the exit code is 2 if the set cannot be reconstructed as it is."""
    images = args.images[0] if len(args.images) == 1 else args.images
    paths = find_images(images)
    masks = find_masks(paths, args.masks)
    sources = [ingest.make_source(Path(path), mask, None) for path, mask in zip(paths, masks, strict=True)]
    findings = _inspect_objects(sources, _configs(args, images), reporter)
    if len(sources) < 2:
        findings.insert(0, Finding("error", "", "one photograph; a reconstruction needs at least two"))
    for finding in findings:
        reporter.event("finding", **dataclasses.asdict(finding))
    wrong = sum(finding.severity == "error" for finding in findings)
    doubtful = sum(finding.severity == "warning" for finding in findings)
    reporter.event("summary", images=len(sources), errors=wrong, warnings=doubtful)
    if reporter.mode != "json":
        shown = [finding for finding in findings if finding.severity == "error" or not args.quiet]
        for finding in shown:
            subject = f"{finding.name}: " if finding.name and finding.name not in finding.text else ""
            print(f"{finding.severity:<8} {subject}{finding.text}")
        if not args.quiet:
            print(f"{len(sources)} photographs, {wrong} errors, {doubtful} warnings")
    return _WRONG if wrong else 0


def _configs(args: argparse.Namespace, images: str | list[str]) -> dict[int | None, Config]:
    """The settings by which each object asked for is seen; None is the only one there is."""
    overrides = parse_settings(args.set or [])
    wanted = parse_object(args.object)
    if wanted is None:
        return {None: load_config(args.preset, overrides)}
    if isinstance(wanted, int):
        return {None: load_config(args.preset, merge(overrides, {"ingest": {"object_id": wanted}}))}
    labels = find_objects(images, args.masks, None if isinstance(wanted, str) else wanted)
    return {label: load_config(args.preset, merge(overrides, {"ingest": {"object_id": label}})) for label in labels}


def _inspect_objects(
    sources: Sequence[Source], configs: Mapping[int | None, Config], reporter: Reporter
) -> list[Finding]:
    """Findings about every object, worst first; what is found with all of them is told once."""
    found: dict[int | None, list[Finding]] = {}
    with reporter.stage("check", len(sources) * len(configs), "image") as bar:
        for label, config in configs.items():
            found[label] = inspect(sources, config, bar.advance)
    first, *others = found.values()
    common = [finding for finding in first if all(finding in other for other in others)]
    own = [
        dataclasses.replace(finding, text=f"object {label}: {finding.text}")
        for label, findings in found.items()
        for finding in findings
        if finding not in common
    ]
    return sorted([*common, *own], key=lambda finding: ORDER[finding.severity])
