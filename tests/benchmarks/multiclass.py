"""Several classes: models of one budget on Adult's occupations and marital states, beside other packages' models.

    python tests/benchmarks/multiclass.py --shared ../shared/data --out docs/results/multiclass.md

All arms read the same splits within the same bytes of a whole model. l2 is chosen on valid with uniform rows of 32 bits
and the first seed, for all arms, the penalty of the logistic regression on valid as well, each seed's epoch on valid
too, and test is read once a seed.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import polars as pl
import torch
from scipy import stats
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import OneHotEncoder

from autoembed.data.dataset import build_dataset
from autoembed.data.readers import DataSpec
from autoembed.space import SearchSpace
from autoembed.training import metrics_on
from autoembed.trial import check, run_trial

SPACES = Path(__file__).resolve().parents[2] / "search_spaces"
CPU = torch.device("cpu")
BYTES, L2 = 27_100, (1e-5, 1e-4, 1e-3)
NAMES = ("cross_entropy", "accuracy", "macro_auc")
TOLD = {
    "occupation": "Which of 14 occupations, from the other columns of Adult; rows without one are left out.",
    "marital_status": "Which of 7 marital states; `relationship`, which names husbands and wives, is left out.",
}
DROPPED = {"occupation": (), "marital_status": ("relationship",)}
ARMS = {
    "uniform, 32 bits": {"method": "uniform"},
    "uniform, 8 bits": {"method": "uniform", "bits": 8},
    "dnis": {"method": "dnis", "warm_epochs": 6, "epochs": 4},
}


def tables(folder: Path, shared: Path, label: str) -> DataSpec:
    """Adult with another label; its official test."""
    spec = SearchSpace.read(SPACES / "adult.yaml").data
    for split, name in (("train", "adult.data"), ("test", "adult.test")):
        read = {"has_header": False, "new_columns": list(spec.columns or ()), "comment_prefix": "|"}
        frame = pl.read_csv(shared / "adult" / name, **read).drop(DROPPED[label])
        frame = frame.with_columns(pl.col(pl.String).str.strip_chars()).filter(pl.col("income").is_not_null())
        frame = frame.with_columns(pl.col("income").str.strip_chars(".")).filter(pl.col(label) != "?")
        frame.write_parquet(folder / f"{split}.parquet")
    return DataSpec.model_validate(
        {"task": "multiclass", "label": label, "numeric": list(spec.numeric), "split": {"by": "random", "valid": 0.1}}
    )


def trial(dataset, stage: dict[str, object], l2: float, seed: int):
    """Metrics on valid and test, bytes, and the seconds of a trial."""
    node = {
        "arm": "x",
        "stages": [stage],
        "monitor": "valid_cross_entropy",
        "embedding": {"dim": 16, "blocks": 4},
        "backbone": {"name": "dnn", "hidden": [64, 32], "dropout": 0.2},
        "train": {"epochs": 12, "lr": 3e-3, "batch_size": 1024, "l2": l2},
        "limit": {"bytes": BYTES},
        "seed": seed,
        "device": "cpu",
    }
    begin = time.perf_counter()
    result, model = run_trial(check(node), dataset, lambda event: None)
    test = metrics_on(model, dataset, "test", CPU)
    return result.valid.cross_entropy, test, result.cost, time.perf_counter() - begin


def arm(dataset, stage: dict[str, object], l2: float, seeds: int):
    runs = [trial(dataset, stage, l2, seed) for seed in range(seeds)]
    return [run[1] for run in runs], runs[0][2], float(np.mean([run[3] for run in runs])), f"l2 {l2:g}"


def others(dataset, seeds: int):
    """Models of other packages on the same rows: metrics on test, size, seconds and what was chosen, by name."""
    ids = {split: np.asarray(dataset.ids(split)) for split in dataset.splits}
    labels = {split: dataset.labels(split).astype(int) for split in dataset.splits}
    task, found = dataset.task, {}

    def judged(chances):
        return task.evaluate(labels["test"].astype(np.float32), chances.astype(np.float32))

    share = np.bincount(labels["train"]) / len(labels["train"])
    found["shares of the classes"] = [judged(np.tile(share, (len(labels["test"]), 1)))], None, 0.0, ""
    begin = time.perf_counter()
    encoder = OneHotEncoder(handle_unknown="ignore").fit(ids["train"])
    x = {split: encoder.transform(own) for split, own in ids.items()}
    best = None
    for penalty in (0.03, 0.3, 3.0):
        model = LogisticRegression(C=penalty, max_iter=200).fit(x["train"], labels["train"])
        valid = task.evaluate(labels["valid"].astype(np.float32), model.predict_proba(x["valid"])).cross_entropy
        best = min(best or (np.inf,), (valid, penalty, model), key=lambda one: one[0])
    numbers, seconds = best[2].coef_.size + best[2].intercept_.size, time.perf_counter() - begin
    name = "logistic regression, one-hot (scikit-learn)"
    found[name] = [judged(best[2].predict_proba(x["test"]))], 4 * numbers, seconds, f"C {best[1]:g}"
    # Bins of numbers keep their order as codes of rising bounds; other ids are codes of categories.
    ranks = [codes_of(dataset, place) for place in range(len(dataset.schema.fields))]
    z = {split: np.stack([rank[own[:, at]] for at, rank in enumerate(ranks)], 1) for split, own in ids.items()}
    few = [field.kind == "categorical" and field.cardinality <= 255 for field in dataset.schema.fields]
    begin = time.perf_counter()
    model = HistGradientBoostingClassifier(
        max_iter=200, early_stopping=True, categorical_features=few, random_state=0, n_iter_no_change=10
    ).fit(z["train"], labels["train"], X_val=z["valid"], y_val=labels["valid"])
    runs, seconds = [judged(model.predict_proba(z["test"]))], time.perf_counter() - begin
    found["gradient boosting (scikit-learn)"] = runs, None, seconds, f"{model.n_iter_} rounds"
    try:
        import lightgbm
    except ImportError:
        return found
    runs, seconds = [], 0.0
    for seed in range(seeds):
        begin = time.perf_counter()
        model = lightgbm.LGBMClassifier(
            n_estimators=300, learning_rate=0.05, num_leaves=15, min_child_samples=40, subsample=0.8, subsample_freq=1,
            colsample_bytree=0.8, random_state=seed, n_jobs=1, verbose=-1,
        )  # fmt: skip
        named = [f"f{at}" for at in range(z["train"].shape[1])]
        frames = {split: pl.DataFrame(own, named).to_pandas() for split, own in z.items()}
        model.fit(
            frames["train"], labels["train"], eval_set=[(frames["valid"], labels["valid"])],
            categorical_feature=[one for one, own in zip(named, few, strict=True) if own],
            callbacks=[lightgbm.early_stopping(20, verbose=False)],
        )  # fmt: skip
        runs.append(judged(np.asarray(model.predict_proba(frames["test"]))))
        seconds += (time.perf_counter() - begin) / seeds
    size = len(model.booster_.model_to_string().encode())
    found["LightGBM"] = runs, size, seconds, f"{model.best_iteration_} rounds, bytes of its text"
    return found


def codes_of(dataset, place: int) -> np.ndarray:
    """What each id of a field is coded as for trees: numbers by their bins' order."""
    field = dataset.schema.fields[place]
    if field.kind != "numeric":
        return np.arange(field.cardinality)
    uppers = dataset.vocabulary.keep([field.name]).table()["upper"]
    return uppers.rank("ordinal").fill_null(0).to_numpy().astype(int)


def spread(runs, name: str) -> str:
    values = [run[name] for run in runs]
    return f"{np.mean(values):.4f}" + (f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else "")


def gap(runs, best, name: str) -> str:
    if runs is best or len(runs) < 2:
        return ""
    found = np.array([run[name] for run in runs]) - np.array([run[name] for run in best])
    p = stats.ttest_1samp(found, 0).pvalue if found.std() else 1.0
    return f"{found.mean():+.4f} ± {found.std(ddof=1):.4f}, p {p:.3f}"


def section(label: str, dataset, ours, theirs) -> tuple[str, dict[str, list]]:
    rows = ", ".join(f"{dataset.rows(split):,}" for split in dataset.splits)
    counts = dict(zip(dataset.schema.classes.names, dataset.schema.classes.rows, strict=True))
    least = min(counts, key=counts.get)
    reference = ours["uniform, 32 bits"][0]
    lines = [
        f"## {label}",
        "",
        f"{TOLD[label]} Rows of train, valid, test: {rows}; the rarest class, {least}, has {counts[least]} in train.",
        "",
        "| model | cross-entropy | behind uniform, 32 bits, paired | accuracy | macro AUC | bytes | of embeddings | "
        "seconds | chosen |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, (runs, cost, seconds, chosen) in ours.items():
        cells = [spread(runs, NAMES[0]), gap(runs, reference, NAMES[0]), *(spread(runs, one) for one in NAMES[1:])]
        cells += [f"{cost.bytes:,}", f"{cost.embedding_bytes:,}", f"{seconds:.1f}", chosen]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    for name, (runs, size, seconds, chosen) in theirs.items():
        cells = [spread(runs, NAMES[0]), "", *(spread(runs, one) for one in NAMES[1:])]
        cells += ["" if size is None else f"{size:,}", "", f"{seconds:.1f}", chosen]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def losses(found) -> list[str]:
    """Who is behind whom, the largest losses first."""
    rows = []
    for label, (ours, theirs) in found.items():
        mine = {name: np.mean([run[NAMES[0]] for run in one[0]]) for name, one in ours.items()}
        best = min(mine, key=mine.get)
        for name, one in theirs.items():
            other = np.mean([run[NAMES[0]] for run in one[0]])
            rows.append((mine[best] - other, label, f"{best}, the best here", name))
        searched = "dnis" in mine
        rows += [(mine["dnis"] - mine[one], label, "dnis", one) for one in ours if searched and one != "dnis"]
    rows.sort(key=lambda row: -row[0])
    return [f"| {label} | {one} | {other} | {value:+.4f} |" for value, label, one, other in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--labels", nargs="+", default=list(TOLD), choices=list(TOLD))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found, sections = {}, []
    for label in args.labels:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "tables"
            folder.mkdir()
            dataset = build_dataset(tables(folder, args.shared, label), str(folder), Path(temporary) / "cache")
            ours, plain = {}, ARMS["uniform, 32 bits"]
            l2 = min(L2, key=lambda one: trial(dataset, plain, one, 0)[0])
            for name in args.arms:
                ours[name] = arm(dataset, ARMS[name], l2, args.seeds)
                print(label, name, spread(ours[name][0], NAMES[0]), f"{ours[name][2]:.1f} s", file=sys.stderr)
            theirs = others(dataset, args.seeds)
            for name, one in theirs.items():
                print(label, name, spread(one[0], NAMES[0]), f"{one[2]:.1f} s", file=sys.stderr)
            found[label] = ours, theirs
            sections.append(section(label, dataset, ours, theirs))
    page = [
        "# Several classes",
        "",
        "```sh",
        "python tests/benchmarks/multiclass.py --shared ../shared/data --out docs/results/multiclass.md",
        "```",
        "",
        f"`data.task: multiclass` on Adult, dnn with hidden layers of 64 and 32, at most {BYTES:,} bytes a model, "
        f"{args.seeds} seeds; {platform.machine()}, torch "
        f"{torch.__version__}, one thread, beside other work. Cross-entropy is in nats, on the official test; others' "
        "models read the same ids, gradient boosting numbers by the order of their bins. p is of a paired t-test, not "
        "corrected for how many there are.",
        "",
        "Mean test cross-entropy of the first less that of the second; losses first:",
        "",
        "| label | first | second | difference |",
        "|---|---|---|---|",
        *losses(found),
        "",
        *sections,
    ]
    text = "\n".join(page)
    if args.out:
        args.out.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
