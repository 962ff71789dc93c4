"""All backbones with one fixed recipe beside LightGBM, on the data of a search space.

    python tests/benchmarks/backbones.py --out docs/results/backbones.md \
        search_spaces/kuairand.yaml=../shared/data/kuairand search_spaces/adult.yaml=../shared/data/adult

The recipe was settled beforehand: dim 10, hidden 128 and 64, batch norm, dropout 0.2, batch 2048, Adam 1e-3, a tenth of
the learning rate after an epoch without a better valid AUC, stop after two. Only the L2 on embeddings is chosen, once a
data set, by the valid AUC of DeepFM under a seed that the table does not use. Test is read once a backbone and seed.
LightGBM reads the same ids as categories, with its own defaults and early stop on valid.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import lightgbm
import numpy as np
import torch
from methods import spread

from autoembed.draws import prepare
from autoembed.metrics import evaluate
from autoembed.nn.backbones.base import names
from autoembed.space import SearchSpace
from autoembed.training import predict
from autoembed.trial import check, run_trial

CPU = torch.device("cpu")
HIDDEN = [128, 64]
TRAIN = {"epochs": 20, "lr": 1e-3, "batch_size": 2048, "patience": 2, "decay": 0.1}
L2 = (0.0, 1e-5, 1e-4, 1e-3, 1e-2, 5e-2)
OPTIONS = {"lr": {}, "fm": {}, "finalmlp": {"hidden": HIDDEN, "hidden2": [64]}}


def config(name, l2, seed):
    return check(
        {
            "arm": name,
            "stages": [{"method": "uniform"}],
            "embedding": {"dim": 1 if name == "lr" else 10},
            "backbone": {"name": name, **OPTIONS.get(name, {"hidden": HIDDEN})},
            "train": TRAIN | {"l2": l2},
            "seed": seed,
            "device": "cpu",
        }
    )


def quiet(values):
    pass


def boosted(dataset, seed, threads):
    """LightGBM's defaults with early stop on valid; its size is that of its leaves."""
    start = perf_counter()
    ids = {split: np.asarray(dataset.ids(split)) for split in ("train", "valid", "test")}
    labels = {split: np.asarray(dataset.labels(split)) for split in ids}
    model = lightgbm.LGBMClassifier(n_estimators=2000, random_state=seed, n_jobs=threads, verbose=-1)
    model.fit(
        ids["train"],
        labels["train"],
        eval_set=[(ids["valid"], labels["valid"])],
        eval_metric="auc",
        categorical_feature=list(range(ids["train"].shape[1])),
        callbacks=[lightgbm.early_stopping(50, first_metric_only=True, verbose=False)],
    )
    seconds = perf_counter() - start
    trees = model.booster_.trees_to_dataframe()
    leaves = int(trees["left_child"][trees["tree_index"] < model.best_iteration_].isna().sum())
    valid, test = (evaluate(labels[split], model.predict_proba(ids[split])[:, 1]) for split in ("valid", "test"))
    return {"seconds": seconds, "valid": valid.model_dump(), "test": test.model_dump(), "size": leaves}


def trained(dataset, name, l2, seed):
    result, model = run_trial(config(name, l2, seed), dataset, quiet)
    test = evaluate(dataset.labels("test"), predict(model, dataset, "test", CPU))
    size = result.cost.parameters
    return {
        "seconds": result.retrain_seconds,
        "valid": result.valid.model_dump(),
        "test": test.model_dump(),
        "size": size,
    }


def measure(space, data, args, cache):
    """(dataset, valid AUC of DeepFM by L2, results by model); what `--keep` holds already is not run again."""
    dataset = prepare(SearchSpace.read(space), data, 0, cache)

    def kept(name, compute):
        path = args.keep / f"{space.stem}-{name}.json"
        if not path.exists():
            temporary = path.with_suffix(f".{os.getpid()}")
            temporary.write_text(json.dumps(compute()))
            temporary.replace(path)
            print(path.name, path.read_text(), file=sys.stderr, flush=True)
        return json.loads(path.read_text())

    def tried():
        return [[l2, run_trial(config("deepfm", l2, 1000), dataset, quiet)[0].valid.auc] for l2 in L2]

    aucs = kept("l2", tried)
    l2 = max(aucs, key=lambda pair: pair[1])[0]
    rows = {}
    for name in args.models:
        if name == "LightGBM":
            runs = (lambda seed=seed: boosted(dataset, seed, args.threads) for seed in range(args.seeds))
        else:
            runs = (lambda seed=seed, name=name: trained(dataset, name, l2, seed) for seed in range(args.seeds))
        rows[name] = [kept(f"{name}-{seed}", run) for seed, run in enumerate(runs)]
    return dataset, aucs, l2, rows


def section(space, dataset, aucs, l2, rows) -> list[str]:
    rounded = ", ".join(f"{value:g}: {auc:.4f}" for value, auc in aucs)
    lines = [
        f"## {space.stem}",
        "",
        f"{len(dataset.schema.fields)} fields, {sum(dataset.schema.cardinalities):,} ids, {dataset.rows('train'):,} / "
        f"{dataset.rows('valid'):,} / {dataset.rows('test'):,} rows. L2 {l2:g} (valid AUC of DeepFM by L2: {rounded}).",
        "",
        "| model | test AUC | test logloss | valid AUC | parameters | s |",
        "|---|---|---|---|---|---|",
    ]
    order = sorted(rows, key=lambda name: -statistics.mean(row["test"]["auc"] for row in rows[name]))
    for name in order:
        runs = rows[name]
        columns = [(split, metric) for split, metric in (("test", "auc"), ("test", "logloss"), ("valid", "auc"))]
        lines.append(
            f"| {name} | "
            + " | ".join(spread([run[split][metric] for run in runs]) for split, metric in columns)
            + f" | {runs[0]['size']:,}{' leaves' if name == 'LightGBM' else ''} | "
            + f"{statistics.mean(run['seconds'] for run in runs):.1f} |"
        )
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+", metavar="SPACE=DATA")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--models", nargs="+", default=[*names(), "LightGBM"])
    parser.add_argument("--keep", type=Path, help="folder of finished runs, to go on after a break or side by side")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lines = [
        "# All backbones, one recipe",
        "",
        f"`python tests/benchmarks/backbones.py {' '.join(args.cases)} --seeds {args.seeds}`",
        "",
        f"Mean ± sd of {args.seeds} seeds, the best by test AUC first. Dim 10 (lr 1), hidden {HIDDEN}, batch norm, "
        f"dropout 0.2, batch {TRAIN['batch_size']}, Adam {TRAIN['lr']:g}, decay {TRAIN['decay']}, patience "
        f"{TRAIN['patience']}; the epoch is chosen by valid and test is read once a seed. L2 was chosen by valid with "
        "DeepFM and another seed, for all backbones alike: none was tuned for itself. LightGBM "
        f"{lightgbm.__version__} reads the same ids as categories, numeric bins too, with its defaults and early stop "
        f"on valid; its seed changes nothing. Seconds on {args.threads} thread(s) of {os.cpu_count()} cores, "
        f"{platform.machine()}, torch {torch.__version__}, other work beside it.",
        "",
    ]
    with tempfile.TemporaryDirectory() as cache:
        args.keep = args.keep or Path(cache)
        args.keep.mkdir(parents=True, exist_ok=True)
        for case in args.cases:
            space, _, data = case.partition("=")
            lines += section(Path(space), *measure(Path(space), data, args, Path(cache)))
    report = "\n".join(lines)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(report)
    print(report)


if __name__ == "__main__":
    main()
