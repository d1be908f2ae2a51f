"""Train the compact MASt3R on procedural pairs rendered as it goes; run in chunks, resume exactly, export.

    train_compact.py train RUN --minutes 25            # again and again, until the schedule ends
    train_compact.py measure RUN                       # views and pairs a second of this device, no training
    train_compact.py validate RUN [--classical]        # fixed unseen scenes: the network, or the classical predictor
    train_compact.py export RUN FOLDER                 # averaged weights, half precision, for sparse_ga/weights/compact
    train_compact.py pack RUN FOLDER                   # the same in files of at most 15 MiB, to carry between machines
    train_compact.py train RUN2 --start FOLDER         # a new schedule from packed weights
    train_compact.py render RUN --pool 1000 --size small --side 128   # without a GPU: objects rendered once, then
    train_compact.py train RUN --pool 1000 --size small --side 128    # drawn from again and again

Leaves RUN/last.safetensors (a checkpoint a minute), RUN/metrics.jsonl and RUN/plots.html.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from sparse_ga.network.model import AsymmetricMASt3R
from sparse_ga.synthetic.procedural.pool import Pool, write_shard
from sparse_ga.synthetic.procedural.scene import SceneConfig, render_batch
from sparse_ga.training.checkpoints import averaged_weights, export_parts, load_parts
from sparse_ga.training.compact_task import CompactTask, CompactTaskConfig, architecture
from sparse_ga.training.loop import Chunk, LoopConfig, run
from sparse_ga.training.metrics import Record
from sparse_ga.training.validation import UnseenPair, score_predictor, unseen_pairs

POOL_SEED, UNSEEN_SEED = 101, 901
_POOL_VIEWS = 8
_LOSS_BATCHES = 40


def _unseen(args: argparse.Namespace) -> list[UnseenPair]:
    """The fixed validation pairs."""
    return unseen_pairs(_unseen_pool(args), args.unseen)


def _unseen_pool(args: argparse.Namespace) -> Pool:
    """Objects of the validation, rendered into a folder of RUN at the first use."""
    folder = args.run / f"unseen_{args.background}"
    folder.mkdir(parents=True, exist_ok=True)
    config = SceneConfig(1, 6, args.side, args.side, grid=48, plain_share=0.5, background=args.background)
    return Pool(folder, config, UNSEEN_SEED, args.device)


def _losses(model: AsymmetricMASt3R, args: argparse.Namespace) -> Record:
    """What training measures, on the unseen objects: means over fixed batches, masked as the arguments say.

    They tell networks and modes apart that find no poses yet.
    """
    modes: dict[str, tuple[float, float, float]] = {"tokens": (1, 0, 0), "fill": (0, 1, 0), "context": (0, 0, 1)}
    config = replace(_config(args), pool_objects=args.unseen, mode_weights=modes[args.mode], imperfect_share=0.0)
    task = CompactTask(config, None, pool=_unseen_pool(args))
    with torch.no_grad():
        records = [task.loss(model, step)[1] for step in range(_LOSS_BATCHES)]
    return {name: sum(r[name] for r in records) / len(records) for name in ("error", "nce", "accuracy")}


def _validator(pairs: list[UnseenPair], args: argparse.Namespace) -> Callable[[AsymmetricMASt3R], Record]:
    """Scores a network on `pairs`, masked as the arguments say."""
    from sparse_ga.config import ForwardConfig
    from sparse_ga.predictors.compact import SmallNetworkPredictor

    config = ForwardConfig(device=args.device, mask_mode=args.mode)

    def score(model: AsymmetricMASt3R) -> Record:
        return score_predictor(SmallNetworkPredictor(model, config, args.side), pairs)

    return score


def _config(args: argparse.Namespace) -> CompactTaskConfig:
    return CompactTaskConfig(
        size=args.size,
        side=args.side,
        objects=args.objects,
        views=args.views,
        rendered_steps=args.rendered_steps,
        pool_objects=args.pool,
        correspondences=args.correspondences,
        seed=args.seed,
    )


def _pool(args: argparse.Namespace) -> Pool:
    """The training pool in RUN/pool; what is missing is rendered when it is drawn."""
    folder = args.run / "pool"
    folder.mkdir(parents=True, exist_ok=True)
    return Pool(folder, SceneConfig(1, _POOL_VIEWS, args.side, args.side, grid=48), POOL_SEED)


def render(args: argparse.Namespace) -> None:
    """Fill the pool ahead of training, or beside it."""
    pool = _pool(args)
    for index in range(args.pool):
        write_shard(pool.folder, pool.config, pool.seed, index)


def train(args: argparse.Namespace) -> None:
    """Train from the last checkpoint for the time given."""
    torch.backends.cuda.matmul.allow_tf32 = True
    loop = LoopConfig(
        steps=args.steps,
        learning_rate=args.rate,
        warmup=max(1, min(1000, args.steps // 10)),
        weight_decay=0.05,
        average_decay=max(0.0, min(0.9995, 1 - 20 / args.steps)),
        validate_every=args.validate_every,
    )
    initial = None if args.start is None else load_parts(args.start)
    validator = _validator(_unseen(args), args) if args.unseen > 0 else None
    task = CompactTask(_config(args), validator, initial, _pool(args) if args.pool else None)
    state = run(task, loop, args.run, torch.device(args.device), Chunk(args.minutes))
    print(f"step {state.step} of {loop.steps}; {args.run / 'metrics.jsonl'}, {args.run / 'plots.html'}")


def _seconds(work: Callable[[int], object], device: torch.device, count: int = 5) -> float:
    """Mean wall time of one call after two warm-up calls."""
    for index in range(2):
        work(index)
    _wait(device)
    begun = time.perf_counter()
    for index in range(count):
        work(index + 2)
    _wait(device)
    return (time.perf_counter() - begun) / count


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(args: argparse.Namespace) -> None:
    """Print rendered views a second and trained pairs a second."""
    device, config = torch.device(args.device), _config(args)
    scene = SceneConfig(config.objects * config.rendered_steps, config.views, config.side, config.side)
    rendering = _seconds(lambda index: render_batch(scene, 5, index, device), device)
    task = CompactTask(config, None, pool=_pool(args) if args.pool else None)
    model = task.build().to(device)
    learning = _seconds(lambda index: task.loss(model, index)[0].backward(), device, 4 * config.rendered_steps)
    views = config.objects * config.views
    figures = {
        "views_per_s": views * config.rendered_steps / rendering,
        "pairs_per_s": views / 2 / learning,  # rendering, or reading the pool, included
        "seconds_per_step": learning,
    }
    if device.type == "cuda":
        figures["peak_memory_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    print(json.dumps({"device": name, **{k: round(v, 3) for k, v in figures.items()}}))


def _averaged(args: argparse.Namespace) -> AsymmetricMASt3R:
    weights, settings, _ = averaged_weights(args.run / "last.safetensors")
    model = AsymmetricMASt3R(architecture(settings["task"]["size"], settings["task"]["side"]))
    model.load_state_dict(weights)
    return model.eval()


def validate(args: argparse.Namespace) -> None:
    """Print the metrics of the averaged network, or of the classical predictor, on the fixed unseen pairs."""
    if args.classical:
        from sparse_ga.predictors.classical import ClassicalPredictor

        metrics = score_predictor(ClassicalPredictor(), _unseen(args))
    else:
        model = _averaged(args).to(args.device)
        metrics = _validator(_unseen(args), args)(model) | _losses(model, args)
    print(json.dumps({k: round(v, 4) for k, v in metrics.items()}))


def export(args: argparse.Namespace) -> None:
    """Write the averaged weights in half precision."""
    from sparse_ga.network.checkpoint import save_model

    info = save_model(_averaged(args), args.output, "Apache-2.0", half=True)
    print(f"{args.output}: {info.size_bytes / 1e6:.1f} MB, {info.parameters / 1e6:.1f} M parameters")


def pack(args: argparse.Namespace) -> None:
    """Write the averaged weights in half precision in files small enough to carry."""
    weights, _, step = averaged_weights(args.run / "last.safetensors")
    paths = export_parts(args.output, weights)
    print(f"step {step}: " + ", ".join(f"{path} {path.stat().st_size / 1e6:.1f} MB" for path in paths))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["render", "train", "measure", "validate", "export", "pack"])
    parser.add_argument("run", type=Path, help="folder of the run: checkpoints, metrics, validation scenes")
    parser.add_argument("output", type=Path, nargs="?", help="export, pack: where the weights go")
    for name, value, text in (
        ("side", 256, "long side of the images in px"),
        ("objects", 16, "objects in a batch"),
        ("views", 4, "views of an object, in pairs"),
        ("rendered-steps", 4, "steps whose objects are rendered together"),
        ("pool", 0, "objects rendered once into RUN/pool and drawn from; 0: new ones for every step"),
        ("correspondences", 1024, "correspondences of a pair in the matching loss"),
        ("steps", 60000, "length of the whole schedule"),
        ("validate-every", 1000, "steps between validations"),
        ("unseen", 40, "objects of the validation; 0: none while training, and no need of pydantic"),
        ("seed", 0, "seed of weights and batches"),
        ("threads", 1, "threads of torch"),
    ):
        parser.add_argument(f"--{name}", type=int, default=value, help=text)
    parser.add_argument(
        "--size", choices=["patch8", "patch16", "small", "tiny"], default="patch8", help="which network"
    )
    parser.add_argument("--mode", choices=["tokens", "fill", "context"], default="tokens", help="masking in validation")
    parser.add_argument(
        "--background",
        choices=["mixed", "still", "clean"],
        default="mixed",
        help="behind the objects of the validation: still while the object moves, one colour, or of all kinds",
    )
    parser.add_argument("--start", type=Path, default=None, help="train: packed weights to start from")
    parser.add_argument("--classical", action="store_true", help="validate: the classical predictor instead")
    parser.add_argument("--rate", type=float, default=5e-4, help="peak learning rate")
    parser.add_argument("--minutes", type=float, default=None, help="stop after this long; run again to go on")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def main() -> None:
    """Run one action."""
    args = _arguments()
    torch.set_num_threads(args.threads)
    {"render": render, "train": train, "measure": measure, "validate": validate, "export": export, "pack": pack}[
        args.action
    ](args)


if __name__ == "__main__":
    main()
