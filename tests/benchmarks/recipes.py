"""What recipes of single phases, a refit, a teacher and a minimum gain are worth, judged on valid; test is not read.

    python tests/benchmarks/recipes.py adult:../shared/data/adult --seeds 3 --out docs/results/adult_recipes.md
    python tests/benchmarks/recipes.py quickstart --seeds 3 --lr 0.003 --l2 0.003 --width 1 \
        --out docs/results/planted_recipes.md

Each argument is a search space, of which only the data are taken, and after a colon where the data are. For each seed
DNIS warms up once, and from a copy of it every way goes on: search, perhaps refit, the architecture within the limit,
retraining from its weights ("inherited") and from fresh ones. Teachers teach the first way's architecture, trained from
fresh weights. On planted data the seed also draws the data.
"""

from __future__ import annotations

import argparse
import copy
import os
import platform
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from methods import prepare, spread

from autoembed.budget import Limit
from autoembed.candidates import within
from autoembed.methods.bilevel import search, split_train
from autoembed.methods.method import configure, load
from autoembed.nn.model import build_model
from autoembed.retraining import retrain
from autoembed.space import SearchSpace
from autoembed.training import fit
from autoembed.trial import check, root_architecture, teacher_of

CPU = torch.device("cpu")
SPACES = Path(__file__).parents[2] / "search_spaces"
FACTORS = (0.3, 0.1, 0.03)
FIRST = "all phases by `train`"
WAYS = {
    FIRST: {},
    **{f"`search_train: {{lr_factor: {factor}}}`": {"search_train": {"lr_factor": factor}} for factor in FACTORS},
    **{
        f"`refit: true`, `refit_train: {{lr_factor: {factor}}}`": {"refit": True, "refit_train": {"lr_factor": factor}}
        for factor in (1, *FACTORS[:2])
    },
    **{f"`inherit_train: {{lr_factor: {factor}}}`": {"inherit_train": {"lr_factor": factor}} for factor in FACTORS},
}
TEACHERS = {
    "`{teacher: {ensemble: 2}}`": {"teacher": {"ensemble": 2}},
    "`{teacher: {ensemble: 4}}`": {"teacher": {"ensemble": 4}},
    "`{teacher: {ensemble: 4}, weight: 0.8}`": {"teacher": {"ensemble": 4}, "weight": 0.8},
    "`{teacher: search}`": {"teacher": "search"},
}
GAINS = (0.0, 1e-5, 1e-4, 3e-4, 1e-3)


def ignore(values):
    pass


def config(args, stage, seed, **train):
    recipe = {"epochs": 20, "lr": args.lr, "l2": args.l2, "batch_size": 1024}
    return check(
        {
            "arm": "dnis",
            "stages": [stage],
            "embedding": {"dim": 16, "blocks": 6},
            "backbone": {"name": "deepfm", "hidden": [64, 32], "dropout": 0.0},
            "train": recipe | train,
            "limit": {"width": args.width},
            "seed": seed,
            "device": "cpu",
        }
    )


def ways(args, dataset, seed, found):
    """Notes per way (supernet's valid AUC, inherited, fresh); the first way's architecture."""
    stage = {"method": "dnis", "warm_epochs": 8, "epochs": args.epochs}
    trial = config(args, stage, seed)
    root, first = root_architecture(trial, dataset), None
    torch.manual_seed(seed)
    warmed = load("dnis").Supernet(dataset.schema, root, configure(stage), dataset.counts, seed)
    rows, _ = split_train(dataset.rows("train"), warmed.config.arch_fraction, seed)
    recipe = trial.train.model_copy(update={"epochs": warmed.config.warm_epochs})
    fit(warmed, dataset, recipe, device=CPU, seed=seed, report=ignore, rows=rows)
    for name, options in WAYS.items():
        net, seen = copy.deepcopy(warmed), []
        net.config = configure({**stage, "warm_epochs": 0, **options})
        torch.manual_seed(seed)
        search(net, dataset, trial.train, device=CPU, seed=seed, report=seen.append)
        aucs = [values[key] for values in seen for key in values if key.endswith("valid_auc")]
        architecture = within(net.answer, Limit(width=args.width), root).architecture
        first = first or architecture
        recipe = net.config.inherit_train.of(trial.train)
        inherited = retrain(architecture, dataset, recipe, CPU, seed, ignore, net.compact(architecture))[1].valid
        fresh = retrain(architecture, dataset, trial.train, CPU, seed, ignore)[1].valid
        found.setdefault(name, []).append((max(aucs[args.epochs - 1 :]), inherited, fresh))
    return first


def teachers(args, dataset, seed, architecture, found):
    """Notes per teacher what its student reaches by logloss."""
    stage, made = {"method": "dnis", "warm_epochs": 8, "epochs": args.epochs}, {}
    for name, told in {"none": None, **TEACHERS}.items():
        trial = config(args, stage, seed, distill=told).model_copy(update={"monitor": "valid_logloss"})
        key = str(told and told["teacher"])
        if key not in made:
            made[key] = teacher_of(trial, dataset, CPU)
        teacher = made[key] and replace(made[key], weight=trial.train.distill.weight)
        options = {"monitor": "valid_logloss", "teacher": teacher}
        found.setdefault(name, []).append(retrain(architecture, dataset, trial.train, CPU, seed, ignore, **options)[1])


def gains(args, dataset, seed, found):
    """Notes per minimum gain how many epochs the full model trains for, and what it reaches."""
    for least in GAINS:
        trial, seen = config(args, {"method": "uniform"}, seed, min_gain=least, decay=0.3), []
        torch.manual_seed(seed)
        model = build_model(dataset.schema, root_architecture(trial, dataset))
        fitted = fit(model, dataset, trial.train, device=CPU, seed=seed, report=seen.append)
        found.setdefault(least, []).append((len(seen), fitted))


def tables(name, by_way, by_teacher, by_gain) -> list[str]:
    lines = [f"## {name}", "", "| way | supernet AUC | inherited AUC | logloss | fresh AUC | logloss |"]
    lines.append("|---|---|---|---|---|---|")
    for way, found in by_way.items():
        cells = [spread([one[0] for one in found])]
        for place in (1, 2):
            cells += [spread([getattr(one[place], metric) for one in found]) for metric in ("auc", "logloss")]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    lines += ["", "| `distill` | AUC | logloss | better than without in |", "|---|---|---|---|"]
    for teacher, found in by_teacher.items():
        ahead = sum(a.valid.logloss < b.valid.logloss for a, b in zip(found, by_teacher["none"], strict=True))
        cells = [spread([getattr(one.valid, metric) for one in found]) for metric in ("auc", "logloss")]
        lines.append(f"| {teacher} | {' | '.join(cells)} | {ahead if teacher != 'none' else '-'} of {len(found)} |")
    lines += ["", "| `min_gain` | epochs | AUC | logloss |", "|---|---|---|---|"]
    for least, found in by_gain.items():
        cells = [spread([getattr(one.valid, metric) for _, one in found], 5) for metric in ("auc", "logloss")]
        lines.append(f"| {least:g} | {spread([float(epochs) for epochs, _ in found], 1)} | {' | '.join(cells)} |")
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spaces", nargs="+", metavar="SPACE[:DATA]")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--l2", type=float, default=1e-3)
    parser.add_argument("--epochs", type=int, default=8, help="of the search")
    parser.add_argument("--width", type=float, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    pages = []
    with tempfile.TemporaryDirectory() as cache:
        for given in args.spaces:
            name, _, data = given.partition(":")
            space, found = SearchSpace.read(SPACES / f"{name}.yaml"), ({}, {}, {})
            for seed in range(args.seeds):
                dataset = prepare(space, data or None, seed, Path(cache))
                architecture = ways(args, dataset, seed, found[0])
                teachers(args, dataset, seed, architecture, found[1])
                gains(args, dataset, seed, found[2])
                print(f"{name} seed {seed} is done", file=sys.stderr, flush=True)
            pages += tables(name, *found)
    head = [
        "# Recipes of single phases, refit, teachers, minimum gain",
        "",
        f"`python tests/benchmarks/recipes.py {' '.join(args.spaces)} --seeds {args.seeds} --lr {args.lr:g} --l2 "
        f"{args.l2:g} --epochs {args.epochs} --width {args.width:g}`",
        "",
        f"All figures are on valid, mean ± sd of {args.seeds} seeds. DeepFM with a tower of 64 and 32, batches of "
        "1024. Students of a teacher have the first way's architecture and fresh weights, and keep the epoch with the "
        "best logloss; so does the line without one. Minimum gains are of the full model with `decay: 0.3`. "
        f"torch {torch.__version__}, 1 thread, {os.cpu_count()} cores, {platform.machine()}.",
        "",
    ]
    text = "\n".join(head + pages)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
