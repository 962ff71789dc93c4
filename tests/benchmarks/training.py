"""Speed of training against a bare torch loop and a DataLoader, in turn in one process, and the cost of a search step.

    python tests/benchmarks/training.py --out docs/results/training.md

The model is a DeepFM of Frappe's shape (10 fields, 5,382 values, 400x3 with batch norm), 200,000 rows, batch 4096, the
same class on every side. Figures are medians of `--repeats` epochs, taken in turn.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter, process_time

import breakdown
import numpy as np
import polars as pl
import torch
from torch import nn
from torch.nn import functional

from autoembed.architecture import Architecture
from autoembed.batches import batches
from autoembed.data.dataset import build_dataset
from autoembed.data.readers import DataSpec
from autoembed.methods.bilevel import search
from autoembed.methods.dnis import Config, Supernet
from autoembed.nn.model import CTRModel
from autoembed.shuffle import Shuffle
from autoembed.task import CLICKS
from autoembed.training import Optimiser, TrainConfig, fit

CARDINALITIES = [957, 4082, 7, 7, 2, 3, 2, 9, 80, 233]
BACKBONE = {"name": "deepfm", "hidden": [400, 400, 400], "dropout": 0.2}
CPU = torch.device("cpu")
BATCH = 4096


def make(rows: int, folder: Path):
    rng = np.random.default_rng(0)
    columns = {f"f{n}": rng.integers(0, size, rows) for n, size in enumerate(CARDINALITIES)}
    path = folder / f"rows{rows}.parquet"
    pl.DataFrame({**columns, "label": rng.integers(0, 2, rows)}).write_parquet(path)
    spec = DataSpec.model_validate({"min_count": 1, "split": {"by": "random", "valid": 0.15, "test": 0.05}})
    return build_dataset(spec, path, folder / "cache")


class Bare(nn.Module):
    """DeepFM as one writes it by hand: one table, FM, MLP."""

    def __init__(self, cardinalities, dim):
        super().__init__()
        self.register_buffer("offset", torch.tensor([0, *np.cumsum(cardinalities)[:-1]]), persistent=False)
        self.table, self.first = nn.Embedding(sum(cardinalities), dim), nn.Embedding(sum(cardinalities), 1)
        layers, width = [], len(cardinalities) * dim
        for size in BACKBONE["hidden"]:
            layers += [nn.Linear(width, size), nn.BatchNorm1d(size), nn.ReLU(), nn.Dropout(0.2)]
            width = size
        self.mlp = nn.Sequential(*layers, nn.Linear(width, 1))

    def forward(self, ids):
        ids = ids + self.offset
        e = self.table(ids)
        fm = 0.5 * (e.sum(1).square() - e.square().sum(1)).sum(1)
        return self.first(ids).sum((1, 2)) + fm + self.mlp(e.flatten(1)).squeeze(1)


def epoch(model, step, loader, clock):
    model.train()
    start = clock()
    for ids, labels in loader:
        step(ids, labels)
    return clock() - start


def adam_step(model):
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)

    def step(ids, labels):
        loss = functional.binary_cross_entropy_with_logits(model(ids), labels)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    return step


def in_memory(ids, labels):
    order = torch.randperm(len(ids))
    for start in range(0, len(ids), BATCH):
        at = order[start : start + BATCH]
        yield ids[at], labels[at]


def measure(dataset, repeats, clock):
    root = Architecture.full(dataset.schema, dataset.counts, dim=10, blocks=6, backbone=BACKBONE)
    ids = torch.tensor(np.asarray(dataset.ids("train")), dtype=torch.int64)
    labels = torch.tensor(np.asarray(dataset.labels("train")))
    ours, same, bare = (
        CTRModel(dataset.schema, root),
        CTRModel(dataset.schema, root),
        Bare(dataset.schema.cardinalities, 10),
    )
    recipe = TrainConfig(batch_size=BATCH)
    optimiser = Optimiser(ours, ours.parameters(), recipe)

    def our_step(ids, labels):
        CLICKS.loss(ours(ids), labels).backward()
        optimiser.step()

    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(ids, labels), batch_size=BATCH, shuffle=True)
    same_step, bare_step = adam_step(same), adam_step(bare)
    times = {"ours": [], "bare loop, our model": [], "bare loop, hand-written model": [], "DataLoader, our model": []}
    for turn in range(repeats + 1):
        ours_batches = batches(dataset, "train", BATCH, CPU, rows=Shuffle(len(ids), turn), least=2)
        times["ours"].append(epoch(ours, our_step, ours_batches, clock))
        times["bare loop, our model"].append(epoch(same, same_step, in_memory(ids, labels), clock))
        times["bare loop, hand-written model"].append(epoch(bare, bare_step, in_memory(ids, labels), clock))
        times["DataLoader, our model"].append(epoch(same, same_step, loader, clock))
    return len(ids), {name: statistics.median(seconds[1:]) for name, seconds in times.items()}


def search_overhead(dataset, repeats, clock):
    """Seconds of a DNIS search step (both updates) over those of a plain step with all weights, same batches."""
    root = Architecture.full(dataset.schema, dataset.counts, dim=10, blocks=6, backbone=BACKBONE)
    recipe = TrainConfig(batch_size=BATCH, epochs=1)
    ratios = {"embedding": [], "all": []}
    for _ in range(repeats):
        seen = []
        rows = Shuffle(round(dataset.rows("train") * 0.8), 0)
        model = CTRModel(dataset.schema, root)
        optimiser = Optimiser(model, model.parameters(), recipe)
        start = clock()
        for ids, labels in batches(dataset, "train", BATCH, CPU, rows=rows, least=2):
            CLICKS.loss(model(ids), labels).backward()
            optimiser.step()
        plain = clock() - start
        for update, found in ratios.items():
            net = Supernet(dataset.schema, root, Config(warm_epochs=0, epochs=1, update=update), dataset.counts, 0)
            start = clock()
            search(net, dataset, recipe, device=CPU, seed=0, report=seen.append)
            found.append((clock() - start) / plain)
    return {update: statistics.median(found) for update, found in ratios.items()}


def shuffle_cost(rows):
    """CPU nanoseconds a row of an epoch's order, by Shuffle and by numpy's permutation."""
    found = []
    for _ in range(5):
        start = process_time()
        order = Shuffle(rows, 0)
        for at in range(0, rows, BATCH):
            order[np.arange(at, min(at + BATCH, rows))]
        middle = process_time()
        np.random.default_rng(0).permutation(np.arange(rows))
        found.append((middle - start, process_time() - middle))
    return [statistics.median(spent) / rows * 1e9 for spent in zip(*found, strict=True)]


def peak_memory(rows):
    """Peak resident memory of a process that trains one epoch on `rows` rows, in MiB."""
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import training; training.one_epoch({rows})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=True)
    return float(done.stdout.split()[-1])


def one_epoch(rows):
    """Trains on encoded rows made beforehand, and prints the growth of private memory during training in MiB."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        dataset = make(rows, Path(folder))
        root = Architecture.full(dataset.schema, dataset.counts, dim=10, blocks=6, backbone=BACKBONE)
        before = private()
        peak = [0.0]
        model = CTRModel(dataset.schema, root)
        forward = model.forward

        def watched(ids):
            peak[0] = max(peak[0], private())
            return forward(ids)

        model.forward = watched
        fit(model, dataset, TrainConfig(epochs=1), device=CPU, seed=0, report=lambda values: None)
        print(peak[0] - before)


def private():
    """Resident memory less file pages, which the system may drop at any time, in MiB."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(fields["RssAnon"].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=250_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu where other work runs beside")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = perf_counter if args.clock == "wall" else process_time
    with tempfile.TemporaryDirectory() as folder:
        dataset = make(args.rows, Path(folder))
        rows, seconds = measure(dataset, args.repeats, clock)
        overhead = search_overhead(dataset, max(3, args.repeats // 2), clock)
        shuffle = shuffle_cost(rows)
        where = breakdown.section(dataset)
    memory = {size: sorted(peak_memory(size) for _ in range(3)) for size in (100_000, 400_000, 1_600_000)}
    ours = seconds["ours"]
    lines = [
        "# Training speed",
        "",
        f"`python tests/benchmarks/training.py --rows {args.rows} --repeats {args.repeats} --threads {args.threads} "
        f"--clock {args.clock}`",
        "",
        f"DeepFM of Frappe's shape, {rows:,} train rows, batch {BATCH}; medians of {args.repeats} epochs, sides "
        f"in turn; {'wall' if args.clock == 'wall' else 'CPU'} seconds. torch {torch.__version__}, "
        f"{args.threads} thread(s), {os.cpu_count()} cores.",
        "",
        "| side | s per epoch | rows/s | ours is faster by |",
        "|---|---|---|---|",
        *(f"| {name} | {s:.2f} | {rows / s:,.0f} | {s / ours:.2f}x |" for name, s in seconds.items()),
        "",
        "A DNIS search step (weights on a train batch, gates on a held-out batch) over a plain step: "
        + ", ".join(f"{ratio:.2f}x with update: {update}" for update, ratio in overhead.items())
        + ".",
        "",
        "Growth of private memory while an epoch is trained (file pages of the memory map not counted), median and "
        "range of 3 runs: "
        + ", ".join(f"{size:,} rows {m:.0f} ({low:.0f} to {high:.0f}) MiB" for size, (low, m, high) in memory.items())
        + ".",
        "",
        f"Row order: {shuffle[0]:.0f} ns a row computed batch by batch, {shuffle[1]:.0f} ns a row by a permutation in "
        f"memory; a training step takes {seconds['ours'] / rows * 1e9:,.0f} ns a row.",
        "",
        f"Peak of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB.",
        "",
        *where,
    ]
    report = "\n".join(lines) + "\n"
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(report)
    print(report)


if __name__ == "__main__":
    main()
