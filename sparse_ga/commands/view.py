"""`sparse-ga view`: look at a result in the browser."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from sparse_ga.commands.export import find_reconstruction
from sparse_ga.commands.jobs import find_run
from sparse_ga.commands.photographs import find_photographs
from sparse_ga.config import ConfigError
from sparse_ga.errors import InputError
from sparse_ga.progress import Reporter
from sparse_ga.report.viewer import Viewer, require_viser


def view(args: argparse.Namespace, reporter: Reporter) -> int:
    """Serve the viewer until Ctrl-C."""
    require_viser()
    folder = Path(args.folder)
    reconstruction, _ = find_reconstruction(folder)
    load_source = None
    try:
        load_source = find_photographs(find_run(folder)[1], reconstruction)
    except (InputError, ConfigError) as error:  # there is enough to look at without them
        reporter.warn(f"cameras are shown without photographs: {error}")
    viewer = Viewer(reconstruction, folder, load_source, args.port)
    reporter.event("serving", url=f"http://localhost:{args.port}")
    if reporter.mode != "json":
        reporter.info(f"look at http://localhost:{args.port}; Ctrl-C ends it")
    try:
        while True:
            time.sleep(1)
    except KeyboardInterrupt:
        viewer.close()
    return 0
