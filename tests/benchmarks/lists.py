"""What lists bring: the same data with and without them, at equal bytes of embeddings.

    python tests/benchmarks/lists.py --ml100k RECBOLE/ml-100k --kuairand ../shared/data/kuairand --out PAGE

MovieLens-100k (`ml100k.py`) with a film's genres as one value; with genres as lists; with the films that the user
liked before as well, in a table of their own or in the films', their mean or by attention. KuaiRand with a video's
tags as one value and as lists. Models are trained on train, the epoch is chosen on valid, and test is read once a
seed.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from autoembed.data.dataset import build_dataset
from autoembed.data.spec import DataSpec
from autoembed.space import SearchSpace
from autoembed.training import metrics_on
from autoembed.trial import check, run_trial

SPACES = Path(__file__).resolve().parents[2] / "search_spaces"
CPU = torch.device("cpu")
METHODS = {"uniform, 4 bits": {"method": "uniform", "bits": 4}, "sensitivity": {"method": "sensitivity"}}
LIKED = {"max_length": 20}
SHARED = {"multi": {"liked": {**LIKED, "shared": "item"}}}


def ml100k(source, folder):
    """Variants by name: the data section, the folder of the data, and how lists are pooled."""
    script = Path(__file__).with_name("ml100k.py")
    for name, more in (("plain", []), ("lists", ["--lists"])):
        subprocess.run([sys.executable, script, source, folder / name, *more], check=True, stdout=subprocess.DEVNULL)
    lists = folder / "lists"
    return {
        "genres as one value": ({}, folder / "plain", "mean"),
        "genres as a list": ({"drop": ["liked"]}, lists, "mean"),
        "and films liked before, a table of their own": ({"multi": {"liked": LIKED}}, lists, "mean"),
        "and films liked before, in the films' table": (SHARED, lists, "mean"),
        "the same by attention": (SHARED, lists, {"liked": "attention"}),
    }


def kuairand(source):
    section = SearchSpace.read(SPACES / "kuairand.yaml").data.model_dump(mode="json", exclude_unset=True)
    lists = {**section, "multi": {"tag": ","}}
    return {"tags as one value": (section, source, "mean"), "tags as a list": (lists, source, "mean")}


def measured(space, data, stage, limit, seeds, pool):
    """Test AUC of each seed, and the bytes of embeddings."""
    aucs, sizes = [], []
    for seed in range(seeds):
        config = space.config(space.arms()[0], {}, seed) if not space.ranges(space.arms()[0]) else None
        base = {} if config is None else config.model_dump(exclude={"limit", "stages", "arm"})
        base |= {"arm": "a", "stages": [stage], "limit": {"embedding_bytes": limit}, "seed": seed, "device": "cpu"}
        base["embedding"] = base.get("embedding", {}) | {"pool": pool}
        result, model = run_trial(check(base), data, lambda event: None)
        aucs.append(metrics_on(model, data, "test", CPU).auc)
        sizes.append(result.cost.embedding_bytes)
    return aucs, statistics.mean(sizes)


def main():
    args = arguments()
    folders = {"ml100k": "ML100K", "kuairand": "KUAIRAND"}
    given = [f"--{name} {word}" for name, word in folders.items() if getattr(args, name)]
    given += [f"--seeds {args.seeds}", *([f"--methods {args.methods}"] if args.methods else [])]
    lines = [
        "# Lists",
        "",
        f"`python tests/benchmarks/lists.py {' '.join(given)}`",
        "",
        f"Test AUC, mean and sd over {args.seeds} seeds, at equal bytes of embeddings. The difference is from the data "
        "in the first row, paired over seeds. Mean pooling but where it says attention; DeepFM with the recipe of the "
        "search space.",
        "",
        "| data | fields | method | embedding bytes | test AUC | difference |",
        "|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        sets = []
        if args.ml100k:
            sets.append(("MovieLens-100k", ml100k(args.ml100k, folder), "ml100k.yaml", 40_000, 20))
        if args.kuairand:
            sets.append(("KuaiRand", kuairand(args.kuairand), "frontier_kuairand.yaml", 200_000, 5))
        for method, stage in list(METHODS.items())[: args.methods]:
            for name, variants, space, limit, warm in sets:
                first = None
                stage = stage | ({"warm_epochs": warm} if method == "sensitivity" else {})
                for variant, (section, source, pool) in variants.items():
                    began = time.perf_counter()
                    data = build_dataset(DataSpec.model_validate(section), source, folder / "cache")
                    aucs, size = measured(SearchSpace.read(SPACES / space), data, stage, limit, args.seeds, pool)
                    gains = [a - b for a, b in zip(aucs, first or aucs, strict=True)]
                    first = first or aucs
                    sd = statistics.stdev(aucs) if len(aucs) > 1 else 0.0
                    error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
                    gain = "" if first is aucs else f"{statistics.mean(gains):+.4f} ± {error:.4f}"
                    cells = (name, variant, method, f"{size:,.0f}", f"{statistics.mean(aucs):.4f} ± {sd:.4f}", gain)
                    lines.append(f"| {' | '.join(cells)} |")
                    print(lines[-1], f"({time.perf_counter() - began:.0f} s)", flush=True)
                    if args.out:
                        args.out.write_text("\n".join(lines) + "\n")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ml100k", type=Path, help="RecBole's folder of MovieLens-100k.")
    parser.add_argument("--kuairand", type=Path, help="The folder of KuaiRand's train and valid.")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", type=int, help="So many of the two methods.")
    parser.add_argument("--out", type=Path, help="A Markdown page.")
    return parser.parse_args()


if __name__ == "__main__":
    main()
