"""Which rule should pick a trial's answer among its retrained candidates?

    python tests/benchmarks/choices.py measure adult sensitivity,dnis --data ../shared/data/adult --out /tmp/choices
    python tests/benchmarks/choices.py table /tmp/choices --out docs/results/choices.md

A trial retrains its own choice from fresh and from searched weights, and its rivals (`candidates.offer`); the best AUC
on valid is the answer. `measure` retrains all of them, for the sizes of the data's frontier, and keeps what they
predict of valid and of a judging split. `table` applies other rules to these predictions. The judging split is never
the test split of a frontier page: of Adult it is 30 % of the training file, and planted data are of other seeds.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from methods import spread

from autoembed import retraining
from autoembed.budget import Limit
from autoembed.candidates import offer
from autoembed.draws import prepare
from autoembed.errors import SpaceError
from autoembed.methods.bilevel import search
from autoembed.methods.method import configure, load
from autoembed.metrics import evaluate
from autoembed.space import SearchSpace
from autoembed.task import CLICKS
from autoembed.training import on_valid, predict
from autoembed.trial import root_architecture

CPU = torch.device("cpu")
SPACES = Path(__file__).parents[2] / "search_spaces"
SIZES = {
    "adult": (1250, 2500, 5000, 10_000, 20_000),
    "longtail": (18_000, 36_000, 72_000, 144_000, 290_000),
}
ARMS = ("uniform", "uniform-2", "sensitivity", "dnis")
RULES = {
    "best AUC (as it is)": lambda y, found: max(found, key=lambda one: evaluate(y, one["valid"]).auc),
    "best logloss": lambda y, found: min(found, key=lambda one: evaluate(y, one["valid"]).logloss),
    "best AUC, fresh weights only": lambda y, found: max(
        [one for one in found if not one["inherited"]], key=lambda one: evaluate(y, one["valid"]).auc
    ),
    "own first, one standard error": lambda y, found: first_by(y, found, ("fresh", "inherited", "rival")),
    "rivals first, one standard error": lambda y, found: first_by(y, found, ("rival", "fresh", "inherited")),
}
ROUNDING = ("aware (as it is)", "rounded only", "aware if a standard error better")
VARIANTS = [(ROUNDING[0], rule) for rule in RULES] + [(rounding, next(iter(RULES))) for rounding in ROUNDING[1:]]


def space_of(name: str) -> SearchSpace:
    space = SearchSpace.read(SPACES / f"frontier_{name}.yaml")
    if space.data.planted is not None:
        return space
    split = space.data.split.model_copy(update={"test": 0.3})
    files = {part: file for part, file in space.data.files.items() if part == "train"}
    return space.model_copy(update={"data": space.data.model_copy(update={"split": split, "files": files})})


def candidates_of(space, arm, dataset, seed, sizes):
    """Each candidate of an arm's search at each size, retrained: dictionaries with predictions of valid and test."""
    config = space.config(arm, {}, seed)
    torch.manual_seed(seed)
    root = root_architecture(config, dataset)
    (stage,) = config.stages
    method = configure(stage)
    net = load(method.method).Supernet(dataset.schema, root, method, dataset.counts, seed)
    search(net, dataset, config.train, device=CPU, seed=seed, report=lambda event: None, monitor=config.monitor)
    for size in sizes:
        try:
            offered = offer(net, config.train, Limit(embedding_bytes=size), root)
        except SpaceError:
            continue  # a gap: the smallest answer of the arm is larger
        for candidate in offered.candidates:
            stages: dict[str, tuple[np.ndarray, np.ndarray]] = {}
            with rounding_kept(stages, dataset):
                model, _ = retraining.retrain(
                    candidate.architecture,
                    dataset,
                    candidate.recipe,
                    CPU,
                    seed,
                    lambda event: None,
                    candidate.start,
                    monitor=config.monitor,
                    like=candidate.like,
                )
            stages["aware"] = both(model, dataset)
            kind = "rival" if candidate.note else "inherited" if candidate.start is not None else "fresh"
            yield {"arm": arm, "seed": seed, "size": size, "kind": kind}, stages


class rounding_kept:  # noqa: N801
    """Within it, `retraining.quantise` also stores what the rounded model predicts before it is trained on."""

    def __init__(self, stages, dataset):
        self.stages, self.dataset, self.original = stages, dataset, retraining.quantise

    def __enter__(self):
        def quantise(model, dataset, train, trained, device, learn, seed):
            retraining.start_rounding(model)
            rounded = replace(trained, valid=on_valid(model, dataset, device, train.lr, "rounding"))
            self.stages["rounded"] = both(model, self.dataset)
            recipe = train.model_copy(update={"lr": train.lr * retraining._AWARE_LR})
            return learn(recipe, seed=seed + 1, start=rounded.valid)

        retraining.quantise = quantise

    def __exit__(self, *error):
        retraining.quantise = self.original


def both(model, dataset):
    return tuple(predict(model, dataset, split, CPU).astype(np.float32) for split in ("valid", "test"))


def measure(args) -> None:
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    space = space_of(args.name)
    for seed in args.seeds:
        dataset = prepare(space, args.data, seed, args.out / "cache", lambda *step: None)
        facts, arrays = [], {split: dataset.labels(split) for split in ("valid", "test")}
        for arm in args.arms.split(","):
            for fact, stages in candidates_of(space, arm, dataset, seed, SIZES[args.name]):
                for stage, parts in stages.items():
                    for split, values in zip(("valid", "test"), parts, strict=True):
                        arrays[f"{len(facts)}/{stage}/{split}"] = values
                facts.append(fact)
                print(fact, flush=True)
        np.savez_compressed(args.out / f"{args.name}-{seed}.npz", facts=json.dumps(facts), **arrays)


def gain(labels, new, old):
    """The gain of AUC and its standard error, paired by rows (DeLong et al., Biometrics 1988)."""
    worse = CLICKS.compare(labels, logit(old))(logit(new))
    return -worse["auc_fall"], worse["auc_se"]


def logit(p):
    p = p.clip(1e-7, 1 - 1e-7)
    return np.log(p / (1 - p))


def first_by(labels, found, order):
    """The first candidate in an order of kinds, replaced by a later one that is a standard error better on valid."""
    best, *rest = sorted(found, key=lambda one: order.index(one["kind"]))
    for one in rest:
        difference, error = gain(labels, one["valid"], best["valid"])
        best = one if difference > error else best
    return best


def stage_by(labels, stages, rounding):
    """Predictions of valid and test of a candidate under a rule of when training in few bits is kept."""
    if "rounded" not in stages or rounding == ROUNDING[0]:
        return stages["aware"]
    if rounding == ROUNDING[2]:
        difference, error = gain(labels, stages["aware"][0], stages["rounded"][0])
        return stages["aware" if difference > error else "rounded"]
    return stages["rounded"]


def read(path):
    """Labels of valid and test, and the candidates of each arm and size, of one file of `measure`."""
    with np.load(path) as stored:
        candidates = defaultdict(list)
        for number, fact in enumerate(json.loads(str(stored["facts"]))):
            stages = {
                stage: tuple(stored[f"{number}/{stage}/{split}"].astype(float) for split in ("valid", "test"))
                for stage in ("rounded", "aware")
                if f"{number}/{stage}/valid" in stored
            }
            candidates[fact["arm"], fact["size"]].append((fact, stages))
        return stored["valid"], stored["test"], candidates


def table(args) -> None:
    lines = [
        "# Picking among retrained candidates",
        "",
        "`python tests/benchmarks/choices.py measure NAME --seeds ... --out FOLDER` for each data set, then "
        f"`... table FOLDER --out {args.out}`",
        "",
        "A trial retrains its own choice from fresh and from searched weights, and simple rivals of the same bytes. "
        "Each rule picks one of them by valid. Each row shows what the rule picks on a judging split that no frontier "
        "page reads: AUC, mean ± sd over seeds, by limit in bytes. `uniform` has 32 bits and `uniform-2` 4; each has "
        "one candidate. Standard errors are paired by rows of valid (DeLong).",
    ]
    for name, sizes in SIZES.items():
        files = sorted(args.folder.glob(f"{name}-*.npz"))
        if not files:
            continue
        seeds = ", ".join(path.stem.rpartition("-")[2] for path in files)
        values = defaultdict(lambda: defaultdict(list))
        rows = {}
        for path in files:
            y, judged, candidates = read(path)
            rows = {"valid": len(y), "judging": len(judged)}
            for (arm, size), found in candidates.items():
                for rounding, rule in VARIANTS[: None if len(found) > 1 else 1]:
                    entries = [
                        {
                            "kind": fact["kind"],
                            "inherited": fact["kind"] == "inherited",
                            **dict(zip(("valid", "test"), stage_by(y, stages, rounding), strict=True)),
                        }
                        for fact, stages in found
                    ]
                    value = evaluate(judged, RULES[rule](y, entries)["test"]).auc
                    values[arm, rounding, rule][size].append(value)
        lines += [
            "",
            f"## {name}",
            "",
            f"Seeds {seeds}; {rows['valid']:,} rows of valid, {rows['judging']:,} of the judging split.",
            "",
            "| arm | training in few bits | rule | " + " | ".join(f"{size:,}" for size in sizes) + " |",
            "|---|---|---|" + "---|" * len(sizes),
        ]
        for (arm, rounding, rule), by_size in values.items():
            cells = [spread(by_size[size]) if len(by_size[size]) == len(files) else "–" for size in sizes]
            lines.append(f"| {arm} | {rounding} | {rule} | " + " | ".join(cells) + " |")
    args.out.write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("measure")
    one.add_argument("name", choices=list(SIZES))
    one.add_argument("arms", nargs="?", default=",".join(ARMS))
    one.add_argument("--data")
    one.add_argument("--seeds", type=int, nargs="+", default=[20, 21, 22, 23])
    one.add_argument("--out", type=Path, required=True)
    one.set_defaults(run=measure)
    two = commands.add_parser("table")
    two.add_argument("folder", type=Path)
    two.add_argument("--out", type=Path, required=True)
    two.set_defaults(run=table)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
