"""Training and search on a CUDA device: speed beside hand-written loops and the CPU, memory, and the same quality.

    python tests/benchmarks/gpu.py --out docs/results/cuda.md

The model is that of training.py, a DeepFM of Frappe's shape; medians of epochs taken in turn.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from training import BACKBONE, Bare, adam_step, make

from autoembed.architecture import Architecture
from autoembed.batches import batches
from autoembed.data.dataset import build_dataset
from autoembed.data.readers import DataSpec
from autoembed.methods.bilevel import search
from autoembed.methods.method import configure, load
from autoembed.nn.model import CTRModel
from autoembed.shuffle import Shuffle
from autoembed.task import CLICKS
from autoembed.training import Optimiser, TrainConfig
from autoembed.trial import check, run_trial

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PLANTED = {
    "planted": {"rows": 60000, "seed": 3, "marginal": [4, 30, 300], "xor": [6], "noise": [5, 50, 500, 2000]},
    "split": {"by": "random", "valid": 0.2, "test": 0.2},
}


def root(dataset):
    return Architecture.full(dataset.schema, dataset.counts, dim=10, blocks=6, backbone=BACKBONE)


def timed(loader, step, device):
    start = perf_counter()
    for ids, labels in loader:
        step(ids, labels)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return perf_counter() - start


def ours(dataset, device, size, **recipe):
    """A function that trains one epoch as `training.fit` does."""
    config = TrainConfig(batch_size=size, **recipe)
    model = CTRModel(dataset.schema, root(dataset)).to(device).train()
    optimiser = Optimiser(model, model.parameters(), config)
    forward = torch.compile(model) if config.compile else model

    def step(ids, labels):
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            logits = forward(ids)
        CLICKS.loss(logits.float(), labels).backward()
        optimiser.step()

    rows = dataset.rows("train")
    return lambda turn: timed(batches(dataset, "train", size, device, rows=Shuffle(rows, turn), least=2), step, device)


def by_hand(dataset, device, size, model, held):
    """The same by a hand-written loop, rows held on the device, or by a DataLoader."""
    ids = torch.tensor(np.asarray(dataset.ids("train")), dtype=torch.int64)
    labels = torch.tensor(np.asarray(dataset.labels("train")))
    step = adam_step(model.to(device).train())
    if not held:
        pairs = torch.utils.data.TensorDataset(ids, labels)
        loader = torch.utils.data.DataLoader(pairs, batch_size=size, shuffle=True, pin_memory=True)

        def moved():
            for some, own in loader:
                yield some.to(device, non_blocking=True), own.to(device, non_blocking=True)

        return lambda turn: timed(moved(), step, device)
    ids, labels = ids.to(device), labels.to(device)

    def drawn():
        order = torch.randperm(len(ids), device=device)
        for start in range(0, len(ids), size):
            at = order[start : start + size]
            yield ids[at], labels[at]

    return lambda turn: timed(drawn(), step, device)


def speed(dataset, repeats):
    lines = ["| batch | side | s per epoch | rows/s | ours takes of its time |", "|---|---|---|---|---|"]
    rows = dataset.rows("train")
    for size in (4096, 32768):
        sides = {
            "ours": ours(dataset, CUDA, size),
            "ours, bfloat16": ours(dataset, CUDA, size, precision="bfloat16"),
            "ours, compiled": ours(dataset, CUDA, size, compile=True),
            "hand-written model, rows on the device": by_hand(
                dataset, CUDA, size, Bare(dataset.schema.cardinalities, 10), True
            ),
            "our model, DataLoader": by_hand(dataset, CUDA, size, CTRModel(dataset.schema, root(dataset)), False),
            f"ours, CPU with {torch.get_num_threads()} threads": ours(dataset, CPU, size),
        }
        times = {name: [] for name in sides}
        for turn in range(repeats + 1):
            for name, run in sides.items():
                times[name].append(run(turn))
        seconds = {name: statistics.median(found[1:]) for name, found in times.items()}
        lines += [
            f"| {size} | {name} | {s:.2f} | {rows / s:,.0f} | {seconds['ours'] / s:.2f}x |"
            for name, s in seconds.items()
        ]
        print("\n".join(lines), flush=True)
    return lines


def searching(dataset):
    """Seconds of one epoch of search, and peak memory on the device, per method."""
    lines = ["| method | s per search epoch | peak MiB |", "|---|---|---|"]
    for method in ("dnis", "ihas"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        net = load(method).Supernet(
            dataset.schema,
            root(dataset),
            configure({"method": method, "warm_epochs": 0, "epochs": 2}),
            dataset.counts,
            0,
        )
        net = net.to(CUDA)
        ends = []
        search(
            net,
            dataset,
            TrainConfig(batch_size=4096),
            device=CUDA,
            seed=0,
            report=lambda values, ends=ends: ends.append(perf_counter()),
        )
        peak = torch.cuda.max_memory_allocated() / 2**20
        lines.append(f"| {method} | {ends[1] - ends[0]:.2f} | {peak:,.0f} |")
        print(lines[-1], flush=True)
    return lines


def quality(folder, seeds):
    """Valid AUC of whole trials on planted data, on either device."""
    dataset = build_dataset(DataSpec.model_validate(PLANTED), None, folder / "planted")
    lines = ["| method | CUDA | CPU |", "|---|---|---|"]
    for method in ("dnis", "ihas", "magnitude"):
        found = {"cuda": [], "cpu": []}
        for device, values in found.items():
            for seed in range(seeds):
                trial = check(
                    {
                        "arm": "x",
                        "stages": [{"method": method, "warm_epochs": 2}],
                        "embedding": {"dim": 8, "blocks": 4},
                        "backbone": {"name": "deepfm", "hidden": [32]},
                        "train": {"epochs": 4, "lr": 3e-3, "batch_size": 1024},
                        "limit": {"width": 2},
                        "seed": seed,
                        "device": device,
                    }
                )
                values.append(run_trial(trial, dataset, lambda values: None)[0].valid.auc)
        cells = [f"{statistics.mean(v):.4f} ({statistics.stdev(v):.4f})" for v in found.values()]
        lines.append(f"| {method} | {cells[0]} | {cells[1]} |")
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_250_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        dataset = make(args.rows, Path(folder))
        table = speed(dataset, args.repeats)
        searched = searching(dataset)
        same = quality(Path(folder), args.seeds)
    device = torch.cuda.get_device_name(0)
    lines = [
        "# CUDA, measured",
        "",
        f"`python tests/benchmarks/gpu.py --rows {args.rows} --repeats {args.repeats} --seeds {args.seeds}` on one "
        f"{device} with {os.cpu_count()} CPU cores, torch {torch.__version__}.",
        "",
        f"DeepFM of Frappe's shape, {dataset.rows('train'):,} train rows; medians of {args.repeats} epochs after one, "
        "sides in turn, wall seconds.",
        "",
        *table,
        "",
        "Search on the same data, batch 4096, one epoch of weights and gates:",
        "",
        *searched,
        "",
        f"Valid AUC of whole trials on planted data at width 2, mean (sd) over {args.seeds} seeds:",
        "",
        *same,
    ]
    report = "\n".join(lines) + "\n"
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(report)
    print(report)


if __name__ == "__main__":
    main()
