"""An epoch with validation against FuxiCTR's: the same DeepFM, recipe and rows, in turn on one machine.

    python -m venv /tmp/fuxictr
    /tmp/fuxictr/bin/pip install torch==2.13.0 fuxictr==2.3.10 'polars>=1.30,<2'
    python tests/benchmarks/fuxictr.py --python /tmp/fuxictr/bin/python --out docs/results/fuxictr.md

Each side is a process of its own that trains one epoch when it is told to, so start-up and preprocessing are not
timed. FuxiCTR has two loaders: Ray Data on Parquet, its default, and a torch DataLoader with one worker on NPZ. Its
DeepFM is that of its model zoo, built from its layers. Ids are encoded once, by autoembed, and handed on as they are.
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
from pathlib import Path
from time import perf_counter

try:
    import psutil
except ImportError:  # in FuxiCTR's environment, which only trains
    psutil = None

CARDINALITIES = [957, 4082, 7, 7, 2, 3, 2, 9, 80, 233]
SIDES = ("autoembed", "fuxictr, Parquet", "fuxictr, NPZ")
DIM, HIDDEN, DROPOUT, BATCH, LR, L2, CLIP = 10, [400, 400, 400], 0.2, 4096, 1e-3, 0.05, 10.0


def write_data(folder: Path, train: int, valid: int) -> None:
    """The encoded dataset, and its ids and labels as FuxiCTR's files."""
    import numpy as np
    import polars as pl

    from autoembed.data.dataset import build_dataset
    from autoembed.data.spec import DataSpec

    rng = np.random.default_rng(0)
    effects = [rng.normal(size=size) for size in CARDINALITIES]
    for split, rows in (("train", train), ("valid", valid), ("test", 2000)):
        columns = {f"f{n}": rng.integers(0, size, rows) for n, size in enumerate(CARDINALITIES)}
        logit = sum(effect[column] for effect, column in zip(effects, columns.values(), strict=True)) / 2
        label = (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.int64)
        pl.DataFrame({**columns, "label": label}).write_parquet(folder / f"{split}.parquet")
    spec = DataSpec.model_validate({"min_count": 1, "categorical": list(columns)})
    dataset = build_dataset(spec, folder, folder / "cache")
    (folder / "path").write_text(str(dataset.path))
    fuxi = folder / "fuxi"
    fuxi.mkdir()
    for split in ("train", "valid"):
        ids, labels = np.asarray(dataset.ids(split)), np.asarray(dataset.labels(split))
        arrays = dict(zip(dataset.schema.names, ids.T.astype(np.int64), strict=True)) | {"label": labels}
        np.savez(fuxi / f"{split}.npz", **arrays)
        pl.DataFrame(arrays).write_parquet(fuxi / f"{split}.parquet")
    features = [
        {name: {"source": "", "type": "categorical", "vocab_size": size}}
        for name, size in zip(dataset.schema.names, dataset.schema.cardinalities, strict=True)
    ]
    total = sum(dataset.schema.cardinalities)
    facts = {"dataset_id": "bench", "num_fields": len(features), "total_features": total, "input_length": len(features)}
    (fuxi / "feature_map.json").write_text(json.dumps({**facts, "labels": ["label"], "features": features}))


def autoembed_side(folder: Path):
    import torch

    from autoembed.architecture import Architecture
    from autoembed.data.dataset import Dataset
    from autoembed.nn.model import CTRModel
    from autoembed.training import TrainConfig, fit

    dataset = Dataset.open((folder / "path").read_text())
    backbone = {"name": "deepfm", "hidden": HIDDEN, "dropout": DROPOUT}
    root = Architecture.full(dataset.schema, dataset.counts, dim=DIM, blocks=1, backbone=backbone)
    model = CTRModel(dataset.schema, root)
    recipe = TrainConfig(epochs=1, lr=LR, batch_size=BATCH, l2=L2, clip=CLIP)
    parameters = sum(parameter.numel() for parameter in model.parameters())

    def epoch(seed):
        return fit(model, dataset, recipe, device=torch.device("cpu"), seed=seed, report=lambda values: None).valid.auc

    return epoch, parameters


def fuxictr_side(folder: Path, kind: str):
    import ray
    from fuxictr.features import FeatureMap
    from fuxictr.pytorch.dataloaders import RankDataLoader
    from fuxictr.pytorch.layers import FactorizationMachine, FeatureEmbedding, MLP_Block
    from fuxictr.pytorch.models import BaseModel

    class DeepFM(BaseModel):
        def __init__(self, feature_map, **options):
            super().__init__(feature_map, **options)
            self.embedding_layer = FeatureEmbedding(feature_map, DIM)
            self.fm = FactorizationMachine(feature_map)
            self.mlp = MLP_Block(
                input_dim=feature_map.sum_emb_out_dim(),
                output_dim=1,
                hidden_units=HIDDEN,
                hidden_activations="relu",
                output_activation=None,
                dropout_rates=DROPOUT,
                batch_norm=True,
            )
            self.compile("adam", "binary_crossentropy", LR)
            self.reset_parameters()
            self.model_to_device()

        def forward(self, inputs):
            X = self.get_inputs(inputs)
            e = self.embedding_layer(X)
            return {"y_pred": self.output_activation(self.fm(X, e) + self.mlp(e.flatten(start_dim=1)))}

        def checkpoint_and_earlystop(self, logs, min_delta=1e-6):
            self.logs = logs
            super().checkpoint_and_earlystop(logs, min_delta)

    fuxi = folder / "fuxi"
    if kind == "parquet":
        ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    feature_map = FeatureMap("bench", str(fuxi))
    feature_map.load(str(fuxi / "feature_map.json"), {"embedding_dim": DIM})
    train, valid = RankDataLoader(
        feature_map,
        stage="train",
        train_data=str(fuxi / f"train.{kind}"),
        valid_data=str(fuxi / f"valid.{kind}"),
        batch_size=BATCH,
        shuffle=True,
        data_format=kind,
    )
    root = folder / kind
    (root / "bench").mkdir(parents=True)
    options = {"model_root": f"{root}/", "metrics": ["AUC", "logloss"], "verbose": 0, "embedding_regularizer": L2}
    model = DeepFM(feature_map, **options)
    parameters = sum(parameter.numel() for parameter in model.parameters())

    def epoch(seed):
        model.fit(train, epochs=1, validation_data=valid, max_gradient_norm=CLIP)
        return model.logs["AUC"]

    return epoch, parameters


def serve(side: str, folder: Path, threads: int) -> None:
    """Trains an epoch for each line on stdin and answers with its seconds and valid AUC."""
    import torch

    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    if side == SIDES[0]:
        epoch, parameters = autoembed_side(folder)
    else:
        epoch, parameters = fuxictr_side(folder, side.rpartition(" ")[2].lower())
    print(json.dumps({"torch": torch.__version__, "parameters": parameters}), file=answer, flush=True)
    for number, _ in enumerate(sys.stdin):
        start = perf_counter()
        auc = epoch(number)
        print(json.dumps({"seconds": perf_counter() - start, "auc": auc}), file=answer, flush=True)


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and all that descend from it, those that have ended and were waited for included."""
    process = psutil.Process(pid)
    return sum(sum(one.cpu_times()[:4]) for one in [process, *process.children(recursive=True)])


def ask(process) -> dict:
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"{process.args} ended: see its messages above")
    return json.loads(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", help="the interpreter of FuxiCTR's environment")
    parser.add_argument("--train", type=int, default=200_000)
    parser.add_argument("--valid", type=int, default=57_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        serve(args.side, args.folder, args.threads)
        return
    if not args.python:
        parser.error("--python must name the interpreter of FuxiCTR's environment")
    with tempfile.TemporaryDirectory() as name:
        write_data(Path(name), args.train, args.valid)
        processes, facts, found = {}, {}, {side: [] for side in SIDES}
        try:
            for side in SIDES:
                python = sys.executable if side == SIDES[0] else args.python
                # -P: this file is called fuxictr too, and must not stand in the package's way.
                command = [python, "-P", __file__, "--side", side, "--folder", name, "--threads", str(args.threads)]
                environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
                if side == SIDES[0]:
                    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
                processes[side] = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
                )
                facts[side] = ask(processes[side])
            for repeat in range(args.repeats + 1):
                for side, process in processes.items():
                    before = cpu_seconds(process.pid)
                    process.stdin.write("epoch\n")
                    process.stdin.flush()
                    found[side].append(ask(process))
                    found[side][-1]["cpu"] = cpu_seconds(process.pid) - before
                    print(repeat, side, found[side][-1], file=sys.stderr, flush=True)
        finally:
            for process in processes.values():
                process.stdin.close()
                process.wait(timeout=60)
    report = table(args, facts, found)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(report)
    print(report)


def table(args, facts, found) -> str:
    seconds = {side: [answer["seconds"] for answer in answers[1:]] for side, answers in found.items()}
    ours = seconds[SIDES[0]]
    lines = [
        "# Against FuxiCTR",
        "",
        f"`python tests/benchmarks/fuxictr.py --python FUXICTR/bin/python --repeats {args.repeats} "
        f"--threads {args.threads}`",
        "",
        f"An epoch with validation: DeepFM of Frappe's shape ({len(CARDINALITIES)} fields, {sum(CARDINALITIES):,} "
        f"values, dim {DIM}, hidden {HIDDEN} with batch norm), {args.train:,} train and {args.valid:,} valid rows, "
        f"batch {BATCH}, Adam, embedding L2 {L2}, gradient norm clipped at {CLIP:g}. {args.repeats} epochs a side, in "
        f"turn, after one that is not counted. FuxiCTR 2.3.10, torch {facts[SIDES[0]]['torch']} on every side, "
        f"{args.threads} threads, {os.cpu_count()} cores, {platform.machine()}.",
        "",
        "| side | median s | fastest s | slowest s | rows/s | ours is faster by | CPU s | parameters | valid AUC |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for side, spent in seconds.items():
        pairs = statistics.median(theirs / mine for theirs, mine in zip(spent, ours, strict=True))
        lines.append(
            f"| {side} | {statistics.median(spent):.2f} | {min(spent):.2f} | {max(spent):.2f} | "
            f"{(args.train + args.valid) / statistics.median(spent):,.0f} | {pairs:.2f}x | "
            f"{statistics.median(answer['cpu'] for answer in found[side][1:]):.2f} | "
            f"{facts[side]['parameters']:,} | {found[side][-1]['auc']:.4f} |"
        )
    lines += [
        "",
        "The ratio is the median over epochs of theirs to ours in the same turn. Rows per second count valid rows too. "
        "CPU seconds are those of the side's process tree; where other work runs beside, they say more than wall time.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
