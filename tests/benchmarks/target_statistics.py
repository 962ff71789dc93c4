"""What click rates of rare values are worth to a plain DeepFM, beside and in place of the values' own embeddings.

    python tests/benchmarks/target_statistics.py --adult ../shared/data/adult --out docs/results/target_statistics.md

Three tables: planted rare values, Adult, and one made like a table of access requests (many columns of thousands of
values, few rows). L2, `min_count`, the prior and the bins are chosen by valid, on seeds that the tables do not use, for
each arm alone. Test is read once an arm and seed. LightGBM and CatBoost (--catboost names the Python of an environment
that has it) read the same rows.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import combinations, product
from pathlib import Path
from unittest.mock import patch

import lightgbm
import numpy as np
import polars as pl
import torch
from methods import spread

from autoembed.data import dataset as dataset_module
from autoembed.data.dataset import build_dataset
from autoembed.data.spec import DataSpec
from autoembed.data.target_statistics import order_of, rates
from autoembed.metrics import evaluate
from autoembed.space import SearchSpace
from autoembed.training import predict
from autoembed.trial import check, run_trial

SPACES = Path(__file__).resolve().parents[2] / "search_spaces"
CPU = torch.device("cpu")
TUNING = (100, 101)
BATCH = {"planted": 512, "Adult": 1024, "access": 512}
L2 = {"planted": (0.0, 1e-4, 1e-3, 1e-2), "Adult": (0.0, 1e-4, 1e-3), "access": (0.0, 1e-4, 1e-3, 1e-2)}
PRIORS, BINS = (1.0, 10.0, 30.0), (16, 64)


def planted(seed, rows=24_000):
    """Users of 2 to 20 rows and items of 2 to 20 rows that have effects, a context, and two columns of noise."""
    rng = np.random.default_rng(seed)
    columns, logit = {}, np.full(rows, -0.5)
    for name, effect in (("user", 1.2), ("item", 1.0), ("noise", 0.0)):
        sizes = rng.integers(2, 21, rows)
        values = np.repeat(np.arange(rows), sizes)[:rows]
        rng.shuffle(values)
        columns[name] = values
        logit += effect * rng.normal(size=rows)[values]
    for name, size, effect in (("context", 20, 0.6), ("plain", 50, 0.0)):
        columns[name] = rng.integers(0, size, rows)
        logit += effect * rng.normal(size=size)[columns[name]]
    return table(columns, logit, rng)


ACCESS = {
    "resource": 7000,
    "manager": 4000,
    "rollup_1": 128,
    "rollup_2": 177,
    "department": 449,
    "title": 343,
    "family_description": 2300,
    "family": 70,
    "code": 343,
}


EFFECTS = {"resource": 1.0, "manager": 0.8, "department": 0.4, "title": 0.4, "family_description": 0.4}


def access(seed, rows=30_000):
    """Requests of access: who asks (a manager's people are alike) for which resource; 94 % are granted.

    Values are Zipf. Effects: each value's own, more of rare ones; and those of resource group by department, and of
    manager by resource group.
    """
    rng = np.random.default_rng(seed)

    def zipf(size):
        weights = 1 / (np.arange(size) + 8.0)
        return weights / weights.sum()

    kinds = {name: rng.choice(size, ACCESS["manager"], p=zipf(size)) for name, size in ACCESS.items()}
    columns = {name: rng.choice(ACCESS[name], rows, p=zipf(ACCESS[name])) for name in ("resource", "manager")}
    for name, size in ACCESS.items():
        if name not in columns:
            own = rng.random(rows) < 0.3
            columns[name] = np.where(own, rng.choice(size, rows, p=zipf(size)), kinds[name][columns["manager"]])
    group = rng.integers(0, 40, ACCESS["resource"])[columns["resource"]]
    logit = np.zeros(rows)
    for name, effect in {
        "resource": 1.0,
        "manager": 0.8,
        "department": 0.4,
        "title": 0.4,
        "family_description": 0.4,
    }.items():
        logit += effect * rng.normal(size=ACCESS[name])[columns[name]]
    logit += 0.7 * rng.normal(size=(40, ACCESS["department"]))[group, columns["department"]]
    logit += 0.7 * rng.normal(size=(40, ACCESS["manager"]))[group, columns["manager"]]
    low, high = -10.0, 10.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if np.mean(1 / (1 + np.exp(-logit - middle))) < 0.94 else (low, middle)
    return table(columns, logit + low, rng)


def table(columns, logit, rng):
    named = {name: [f"{name}{value}" for value in values] for name, values in columns.items()}
    click = (rng.random(len(logit)) < 1 / (1 + np.exp(-logit))).astype(int)
    return pl.DataFrame({**named, "label": click}), 1 / (1 + np.exp(-logit))


class Source:
    """A table by seed, and its encoded forms."""

    def __init__(self, name, cache, adult):
        self.name, self.cache, self.adult = name, cache, adult
        space = SearchSpace.read(SPACES / "adult.yaml")
        self.base = space.data.model_dump(exclude_unset=True) if name == "Adult" else {}
        self.columns = {
            "planted": ("user", "item", "noise"),
            "Adult": ("workclass", "education", "marital_status", "occupation", "relationship", "native_country"),
            "access": tuple(ACCESS),
        }[name]

    def spec(self, seed, least, stats):
        split = {"by": "random", "valid": 0.1} if self.base else {"by": "random", "valid": 0.15, "test": 0.2}
        node = self.base | {"split": split | {"seed": seed}, "min_count": least}
        if stats is not None:
            stats = dict(stats)
            pairs = [f"{a}*{b}" for a, b in combinations(self.columns, 2)] if stats.pop("pairs", False) else []
            if pairs:
                least_of_pairs = {"min_count": 1, "cap": None}
                node["crosses"] = {"pairs": list(combinations(self.columns, 2)), **least_of_pairs}
            replaced = [*self.columns, *pairs] if stats.pop("in place", False) else pairs
            node["target_statistics"] = {"columns": [*self.columns, *pairs], "replace": replaced, **stats}
        return DataSpec.model_validate(node)

    def dataset(self, seed, least=2, stats=None):
        return build_dataset(self.spec(seed, least, stats), self.data(seed), self.cache / "encoded")

    def data(self, seed):
        if self.name == "Adult":
            return self.adult
        path = self.cache / f"{self.name}-{seed}.parquet"
        if not path.is_file():
            {"planted": planted, "access": access}[self.name](seed)[0].write_parquet(path)
        return path


def trained(source, seed, l2, least, stats):
    """Metrics of the plain DeepFM on valid and on test."""
    dataset = source.dataset(seed, least, stats)
    train = {"epochs": 20, "lr": 1e-3, "batch_size": BATCH[source.name], "patience": 2, "decay": 0.1, "l2": l2}
    backbone = {"name": "deepfm", "hidden": [64, 32], "dropout": 0.2}
    node = {"arm": "uniform", "stages": [{"method": "uniform"}], "embedding": {"dim": 8}, "backbone": backbone}
    config = check(node | {"train": train, "seed": seed, "device": "cpu"})
    result, model = run_trial(config, dataset, lambda event: None)
    return result, model, dataset


def slope(labels, predictions):
    """By how much the logits of predictions must be scaled to fit the labels best: below 1 they are too sure."""
    logit = np.log(predictions) - np.log1p(-predictions)
    logit, weights = logit.astype(np.float64), np.array([0.0, 1.0])
    rows = np.stack([np.ones_like(logit), logit], axis=1)
    for _ in range(30):
        p = 1 / (1 + np.exp(-rows @ weights))
        weights = weights + np.linalg.solve((rows * (p * (1 - p))[:, None]).T @ rows, rows.T @ (labels - p))
    return float(weights[1])


def tested(source, seed, settings):
    """What a final run gives: metrics, bytes, and the slope of its logits on test."""
    l2, least, stats = settings
    result, model, dataset = trained(source, seed, l2, least, stats)
    found = predict(model, dataset, "test", CPU)
    own = evaluate(dataset.labels("test"), found)
    train = evaluate(dataset.labels("train"), predict(model, dataset, "train", CPU))
    parameters = result.cost.embedding_parameters
    return {
        "auc": own.auc,
        "logloss": own.logloss,
        "valid": result.valid.auc,
        "train": train.auc,
        "slope": slope(dataset.labels("test"), found),
        "parameters": parameters,
    }


def tuned(source, options):
    """The mean valid AUC of each of these settings over the tuning seeds, and the best."""
    scores = {}
    for settings in options:
        found = [trained(source, seed, *settings)[0].valid.auc for seed in TUNING]
        scores[json.dumps(settings)] = statistics.mean(found)
        print(source.name, settings, f"valid AUC {scores[json.dumps(settings)]:.4f}", file=sys.stderr, flush=True)
    best = max(scores, key=lambda key: scores[key])
    return json.loads(best), scores


def choose(source, stats):
    """Settings of an arm by valid: L2 and `min_count` first, then the prior and the bins of its rates.

    Adult, whose columns have few values, has L2 chosen alone, and no rates of pairs.
    """
    least = (2,) if source.name == "Adult" else (1, 2)
    best, scores = tuned(source, [(l2, n, stats) for l2, n in product(L2[source.name], least)])
    if stats is None or source.name == "Adult":
        return best, scores
    more = [(best[0], best[1], stats | {"prior": prior, "bins": bins}) for prior, bins in product(PRIORS, BINS)]
    scores |= tuned(source, more)[1]
    return json.loads(max(scores, key=lambda key: scores[key])), scores


def boosted(source, seed):
    """LightGBM on the ids as categories, with its defaults and early stop on valid."""
    dataset = source.dataset(seed)
    ids = {split: np.asarray(dataset.ids(split)) for split in dataset.splits}
    labels = {split: np.asarray(dataset.labels(split)) for split in ids}
    model = lightgbm.LGBMClassifier(n_estimators=2000, learning_rate=0.05, random_state=seed, n_jobs=1, verbose=-1)
    places = [place for place, field in enumerate(dataset.schema.fields) if field.kind == "categorical"]
    model.fit(
        ids["train"],
        labels["train"],
        eval_set=[(ids["valid"], labels["valid"])],
        eval_metric="auc",
        categorical_feature=places,
        callbacks=[lightgbm.early_stopping(50, first_metric_only=True, verbose=False)],
    )
    own = evaluate(labels["test"], model.predict_proba(ids["test"])[:, 1])
    return {"auc": own.auc, "logloss": own.logloss}


CATBOOST = """
import json, sys
import numpy as np
from catboost import CatBoostClassifier, Pool

given = np.load(sys.argv[1])
places, seed = given["places"].tolist(), int(given["seed"])
pool = {}
for split in ("train", "valid", "test"):
    rows = given[split].astype(object)
    pool[split] = Pool(rows, given[split + "_labels"], cat_features=places)
model = CatBoostClassifier(
    iterations=1500, learning_rate=0.05, random_seed=seed, thread_count=1, verbose=False, eval_metric="AUC",
    loss_function="Logloss", od_type="Iter", od_wait=50, allow_writing_files=False, max_ctr_complexity=2,
)
model.fit(pool["train"], eval_set=pool["valid"])
np.save(sys.argv[2], model.predict_proba(pool["test"])[:, 1])
"""


def catboost(source, seed, python):
    """CatBoost on every value as a category, with early stop on valid, by the Python of another environment."""
    dataset = source.dataset(seed, 1)
    kinds = [place for place, field in enumerate(dataset.schema.fields) if field.kind == "categorical"]
    given = {split: np.asarray(dataset.ids(split)) for split in dataset.splits}
    given |= {f"{split}_labels": np.asarray(dataset.labels(split)) for split in dataset.splits}
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "rows.npz", places=kinds, seed=seed, **given)
        words = [python, "-c", CATBOOST, f"{folder}/rows.npz", f"{folder}/found.npy"]
        subprocess.run(words, check=True, env=os.environ | {"PYTHONPATH": ""})
        own = evaluate(dataset.labels("test"), np.load(f"{folder}/found.npy"))
    return {"auc": own.auc, "logloss": own.logloss}


def unordered(source, seed, settings):
    """The arm beside embeddings with the trap: train rows have the rates of all train rows, their own label too."""

    def naive(ids, labels, order, prior):
        return rates(ids, labels, int(ids.max()) + 1, prior)[ids]

    with patch.object(dataset_module, "ordered_rates", naive), tempfile.TemporaryDirectory() as cache:
        other = Source(source.name, Path(cache), source.adult)
        return tested(other, seed, settings)


def shift(source, seeds):
    """The AUC of the rate of the first column alone, in each quarter of the order of train, and in test."""
    found = []
    for seed in seeds:
        dataset = source.dataset(seed, 2, {"bins": 16})
        name = f"ctr({source.columns[0]})"
        place = dataset.schema.index(name)
        uppers = dataset.vocabulary.keep([name]).table()["upper"].fill_null(0).clip(0, 1).to_numpy()
        order = order_of(dataset.rows("train"), 0)
        parts = [("train", rows) for rows in np.array_split(order, 4)] + [("test", slice(None))]
        rows = [(uppers[dataset.ids(split)[at, place]], dataset.labels(split)[at]) for split, at in parts]
        found.append([evaluate(labels, scores).auc for scores, labels in rows])
    return np.mean(found, axis=0).tolist()


FIRST = {"prior": 10.0, "bins": 32}  # with which L2 and min_count are chosen
ARMS = {
    "embeddings alone": None,
    "rates beside": FIRST,
    "rates in place": {"in place": True, **FIRST},
    "rates beside, and of all pairs": {"pairs": True, **FIRST},
    "rates in place, and of all pairs": {"in place": True, "pairs": True, **FIRST},
}


def measured(source, args):
    """Settings by arm, valid AUC of what was tried, and per arm what each seed gives."""
    settings, tried, found = {}, {}, {}
    seeds = range(args.seeds if source.name != "Adult" else args.adult_seeds)
    for arm, stats in ARMS.items():
        if source.name == "Adult" and "pairs" in arm:
            continue
        settings[arm], tried[arm] = choose(source, stats)
        found[arm] = [tested(source, seed, settings[arm]) for seed in seeds]
        print(source.name, arm, settings[arm], found[arm], file=sys.stderr, flush=True)
    found["rates beside, **not ordered**"] = [unordered(source, seed, settings["rates beside"]) for seed in seeds]
    found["LightGBM"] = [boosted(source, seed) for seed in seeds]
    if args.catboost:
        found["CatBoost"] = [catboost(source, seed, args.catboost) for seed in seeds]
    return settings, tried, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adult", default="../shared/data/adult")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--adult-seeds", type=int, default=3)
    parser.add_argument("--tables", nargs="+", default=["planted", "access", "Adult"])
    parser.add_argument("--catboost", help="the Python of an environment that has catboost")
    parser.add_argument("--kept", type=Path, help="a folder for what each table gave; what is there is not measured")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for name in args.tables:
        file = args.kept and args.kept / f"{name}.json"
        if file is None or not file.is_file():
            begun = time.perf_counter()
            with tempfile.TemporaryDirectory() as cache:
                own = measured(Source(name, Path(cache), args.adult), args)
            results[name] = [*own, (time.perf_counter() - begun) / 60]
            if file:
                file.write_text(json.dumps(results[name]))
        else:
            results[name] = json.loads(file.read_text())
    with tempfile.TemporaryDirectory() as cache:
        shifts = {name: shift(Source(name, Path(cache), args.adult), range(3)) for name in args.tables}
    report = page(args, results, shifts)
    if args.out:
        args.out.write_text(report)
    print(report)


def told(settings):
    l2, least, stats = settings
    words = f"l2 {l2:g}, min_count {least}"
    if stats is None:
        return words
    return f"{words}, prior {stats['prior']:g}, bins {stats['bins']}"


def page(args, results, shifts) -> str:
    lines = [
        "# Target statistics",
        "",
        f"`python tests/benchmarks/target_statistics.py --adult {args.adult} --seeds {args.seeds} --adult-seeds "
        f"{args.adult_seeds}{' --catboost PYTHON' if args.catboost else ''} --out {args.out}`",
        "",
        "A plain DeepFM, width 8, hidden [64, 32], dropout 0.2, Adam 1e-3, the epoch chosen by valid. Mean ± sd over "
        "seeds, which draw table, split and weights (Adult: valid and weights). Gain: test AUC less that of "
        "embeddings alone, paired by seed. L2, `min_count`, prior and bins are each arm's best on valid of the seeds "
        f"{TUNING[0]} and {TUNING[1]}, which are not in the tables. Rates of pairs stand in for the pairs, which have "
        "no embeddings. Slope: what the logits on test must be multiplied by to fit the labels best; below 1 they are "
        "too sure.",
        "",
        "`planted`: 24,000 rows; users and items have 2 to 20 rows each. `access`: 30,000 rows, 9 columns of "
        f"{min(ACCESS.values())} to {max(ACCESS.values()):,} values, 94 % clicks.",
    ]
    for name, (settings, tried, found, minutes) in results.items():
        first = found["embeddings alone"]
        lines += [
            "",
            f"## {name}",
            "",
            "| arm | chosen on valid | test AUC | gain | ahead | test logloss | train AUC | slope "
            "| embedding parameters |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for arm, runs in found.items():
            gains = [run["auc"] - one["auc"] for run, one in zip(runs, first, strict=True)]
            gain = (
                f"{spread(gains)} | {sum(g > 0 for g in gains)} of {len(gains)}"
                if arm != "embeddings alone"
                else "– | –"
            )
            cells = [
                spread([run["train"] for run in runs]) if "train" in runs[0] else "–",
                spread([run["slope"] for run in runs], 2) if "slope" in runs[0] else "–",
                f"{statistics.mean(run['parameters'] for run in runs):,.0f}" if "parameters" in runs[0] else "–",
            ]
            own = told(settings[arm]) if arm in settings else "as above" if "rates" in arm else "defaults"
            lines.append(
                f"| {arm} | {own} | {spread([run['auc'] for run in runs])} | {gain} "
                f"| {spread([run['logloss'] for run in runs])} | {' | '.join(cells)} |"
            )
        lines += ["", "Tried on valid, AUC of the tuning seeds:", ""]
        for arm, scores in tried.items():
            best = sorted(scores.items(), key=lambda item: -item[1])
            lines.append(f"- {arm}: " + "; ".join(f"{told(json.loads(key))}: {value:.4f}" for key, value in best))
        lines += ["", f"{minutes:.1f} minutes."]
    lines += [
        "",
        "## What train's rates know",
        "",
        "The AUC of the rate of one column alone (prior 10, 16 bins), 3 seeds: in quarters of the random order, whose "
        "last rows have seen the most, and in test, where a rate is of all train rows.",
        "",
        "| table | column | first quarter | second | third | last | test |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in shifts.items():
        column = Source(name, Path(), args.adult).columns[0]
        lines.append(f"| {name} | {column} | " + " | ".join(f"{value:.3f}" for value in found) + " |")
    lines += ["", f"torch {torch.__version__}, 1 thread of {os.cpu_count()} cores, {platform.machine()}."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
