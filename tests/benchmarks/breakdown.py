"""Where a training step's time goes: phases of the step, and operators, by torch.profiler.

    python tests/benchmarks/breakdown.py

Prints a section for docs/results/training.md; tests/benchmarks/training.py calls it.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from autoembed.architecture import Architecture
from autoembed.batches import batches
from autoembed.nn.model import CTRModel
from autoembed.shuffle import Shuffle
from autoembed.task import CLICKS
from autoembed.training import Optimiser, TrainConfig

BATCH = 4096
BACKBONE = {"name": "deepfm", "hidden": [400, 400, 400], "dropout": 0.2}
PHASES = ("batches", "embedding lookup", "tower", "interaction", "loss", "backward", "L2", "clip and Adam")


def named(name, function):
    def run(*args):
        with record_function(name):
            return function(*args)

    return run


def timed(iterator):
    while True:
        with record_function("batches"):
            batch = next(iterator, None)
        if batch is None:
            return
        yield batch


def section(dataset, steps=40) -> list[str]:
    """Shares of a DeepFM step under the BARS recipe, in Markdown."""
    root = Architecture.full(dataset.schema, dataset.counts, dim=10, blocks=6, backbone=BACKBONE)
    model = CTRModel(dataset.schema, root).train()
    optimiser = Optimiser(model, model.parameters(), TrainConfig(l2=0.05, clip=10))
    model.embedding.forward = named("embedding lookup", model.embedding.forward)
    model.backbone.tower.forward = named("tower", model.backbone.tower.forward)
    model.backbone.forward = named("backbone", model.backbone.forward)
    optimiser.regularise = named("L2", optimiser.regularise)
    order = Shuffle(dataset.rows("train"), 0)
    loss_of = named("loss", CLICKS.loss)

    def train(steps):
        stream = batches(dataset, "train", BATCH, torch.device("cpu"), rows=order)
        for _, (ids, labels) in zip(range(steps), timed(stream), strict=False):
            loss = loss_of(model(ids), labels)
            with record_function("backward"):
                loss.backward()
            with record_function("optimiser"):
                optimiser.step()

    train(5)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        train(steps)
    events = {event.key: event for event in profiled.key_averages()}
    spent = {
        name: events[name].cpu_time_total for name in (*PHASES[:3], "backbone", "loss", "backward", "optimiser", "L2")
    }
    spent["interaction"] = spent.pop("backbone") - spent["tower"]
    spent["clip and Adam"] = spent.pop("optimiser") - spent["L2"]
    total = sum(spent.values())
    operators = sorted((event for key, event in events.items() if "::" in key), key=lambda e: -e.self_cpu_time_total)
    return [
        "## Where a step's time goes",
        "",
        f"torch.profiler over {steps} steps of the same DeepFM with L2 and clipping, forward phases on their own, "
        "backward as a whole.",
        "",
        "| phase | share |",
        "|---|---|",
        *(f"| {name} | {spent[name] / total:.1%} |" for name in PHASES),
        "",
        "| operator (forward and backward) | share |",
        "|---|---|",
        *(f"| `{event.key}` | {event.self_cpu_time_total / total:.1%} |" for event in operators[:10]),
        "",
    ]


def main() -> None:
    import training

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        print("\n".join(section(training.make(250_000, Path(folder)))))


if __name__ == "__main__":
    main()
