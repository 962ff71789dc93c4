"""iHAS beside its controls on planted populations, under three backbones: does it transfer?

    python tests/benchmarks/clusters.py --out docs/results/clusters.md

Each seed draws the data, 20,000 rows of two populations that depend on disjoint columns. One recipe for all arms; the
single models get a tower so wide that they have at least as many parameters as the routed ones.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import torch
from methods import spread
from sklearn.metrics import adjusted_rand_score

from autoembed.data.dataset import build_dataset
from autoembed.data.planted import PlantedSpec, planted
from autoembed.data.readers import DataSpec
from autoembed.metrics import evaluate
from autoembed.training import predict
from autoembed.trial import check, run_trial

SPEC = {"rows": 20_000, "marginal": [10, 100], "xor": [], "low_rank": [], "noise": [10, 100, 1000], "populations": True}
ROUTED = ("ihas", "embedding_clusters", "random_clusters", "ensemble")
ARMS = (*ROUTED, "one_cluster", "magnitude", "dnis")


def data(folder, seed):
    spec = {"planted": {**SPEC, "seed": seed}, "split": {"by": "random", "valid": 0.2, "test": 0.2}}
    dataset = build_dataset(DataSpec.model_validate(spec), None, folder)
    truth = planted(PlantedSpec(**SPEC, seed=seed))[1]["populations"]
    table = dataset.vocabulary.table().filter(pl.col("field") == "population")
    of_id = np.zeros(int(table["id"].max()) + 1, dtype=int)
    of_id[table["id"]] = table["value"].is_in(truth["values_B"]).fill_null(False)
    return dataset, of_id


def one(dataset, of_id, arm, backbone, seed):
    config = {
        "arm": arm,
        "stages": [{"method": arm}],
        "embedding": {"dim": 8, "blocks": 4},
        "backbone": {"name": backbone, "hidden": [16 if arm in ROUTED else 48], "dropout": 0.1},
        "train": {"epochs": 8, "lr": 2e-3, "l2": 1e-3, "batch_size": 512},
        "limit": {"width": 1},
        "seed": seed,
    }
    result, model = run_trial(check(config), dataset, lambda values: None)
    test = evaluate(dataset.labels("test"), predict(model, dataset, "test", torch.device("cpu")))
    agreement = None
    if getattr(model, "router", None) is not None:
        ids = torch.from_numpy(dataset.ids("test"))
        truth = of_id[ids[:, dataset.schema.index("population")].numpy()]
        agreement = adjusted_rand_score(truth, model.router(ids).numpy())
    return test, result, agreement


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines = ["| backbone | arm | test AUC | test logloss | ARI with the populations | parameters | bytes |"]
    lines.append("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        drawn = [data(Path(folder) / str(seed), seed) for seed in range(args.seeds)]
        for backbone in ("deepfm", "dcn", "dnn"):
            for arm in ARMS:
                found = [one(*pair, arm, backbone, seed) for seed, pair in enumerate(drawn)]
                tests, results, agreements = zip(*found, strict=True)
                known = [agreement for agreement in agreements if agreement is not None]
                lines.append(
                    f"| {backbone} | {arm} | {spread([t.auc for t in tests])} | {spread([t.logloss for t in tests])} | "
                    f"{f'{min(known):.2f} to {max(known):.2f}' if known else ''} | "
                    f"{statistics.mean(r.cost.parameters for r in results):,.0f} | "
                    f"{statistics.mean(r.cost.bytes for r in results):,.0f} |"
                )
                print(lines[-1], flush=True)
    text = "\n".join(
        [
            "# Clusters on planted populations, under three backbones",
            "",
            f"`python tests/benchmarks/clusters.py --seeds {args.seeds}`",
            "",
            f"{args.seeds} seeds, each with data of its own: 20,000 rows, two populations with three columns each, "
            "effects and noise. Mean ± sd. Routers count as parameters and bytes; single models have wider towers.",
            "",
            *lines,
        ]
    )
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
