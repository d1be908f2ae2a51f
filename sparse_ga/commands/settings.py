"""`sparse-ga config`: every setting with its value and its meaning."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import textwrap
from itertools import pairwise
from typing import Any

from sparse_ga import config as module
from sparse_ga.commands.jobs import parse_settings
from sparse_ga.config import load_config, preset_names
from sparse_ga.progress import Reporter


def config(args: argparse.Namespace, reporter: Reporter) -> int:
    """Print all settings as TOML, each below its documentation."""
    chosen = load_config(args.preset, parse_settings(args.set or []))
    reporter.event("summary", config=dataclasses.asdict(chosen), presets=preset_names())
    if reporter.mode == "json":
        return 0
    print(f"# presets: {', '.join(preset_names())}")
    _print_fields(chosen, "")
    for field in dataclasses.fields(chosen):
        section = getattr(chosen, field.name)
        if dataclasses.is_dataclass(section):
            print(f"\n[{field.name}]  # {inspect.getdoc(type(section))}")
            _print_fields(section, "")
    return 0


def _print_fields(section: Any, indent: str) -> None:
    meanings = field_docs(type(section))
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            continue
        for line in textwrap.wrap(meanings.get(field.name, ""), 100):
            print(f"{indent}# {line}")
        print(f"{indent}{'# ' if value is None else ''}{field.name} = {_toml(value)}")


def _toml(value: Any) -> str:
    if value is None:
        return "(unset)"
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def field_docs(section: type) -> dict[str, str]:
    """The text under each field of a config dataclass."""
    tree = ast.parse(inspect.getsource(module))
    docs: dict[str, str] = {}
    for node in tree.body:
        if not isinstance(node, ast.ClassDef) or node.name != section.__name__:
            continue
        for before, after in pairwise(node.body):
            if not (isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name)):
                continue
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                docs[before.target.id] = " ".join(str(after.value.value).split())
    return docs
