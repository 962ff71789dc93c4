"""What do five sizes cost that are read off one nested training, and what are they worth beside five trainings?

    python tests/benchmarks/nested.py --adult ../shared/data/adult --out docs/results/nested.md

One supernet is trained in a nested basis; the models of 1, 2, 4, 8 and 16 dims for every value are its prefixes, as
they are and after a few epochs of training each. Beside them: each width trained alone from fresh weights, which is
also what costs are counted in (CPU seconds of one plain training of the full width).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from time import process_time

import numpy as np
import torch

from autoembed.draws import prepare
from autoembed.metrics import evaluate
from autoembed.nn.model import build_model
from autoembed.search.bilevel import search
from autoembed.search.method import configure, load
from autoembed.space import SearchSpace
from autoembed.training import fit, predict
from autoembed.trial import root_architecture

CPU = torch.device("cpu")
WIDTHS = (1, 2, 4, 8, 16)
SPACES = {name: f"search_spaces/frontier_{name}.yaml" for name in ("longtail", "planted", "adult")}
WAYS = {"as it is": 0, "1 epoch each": 1, "2 epochs each": 2}


def ignore(values):
    pass


def test_auc(model, dataset):
    return evaluate(dataset.labels("test"), predict(model, dataset, "test", CPU)).auc


def measure(space, dataset, seed):
    """Test AUC by way and width, and CPU seconds by way, the plain training of the full width last."""
    config = space.config("uniform", {}, seed)
    root = root_architecture(config, dataset)
    aucs: dict[str, list[float]] = {"alone": []}
    seconds: dict[str, float] = {}
    for width in WIDTHS:
        kept = np.broadcast_to(np.arange(root.dim) < width, root.mask().shape)
        torch.manual_seed(seed)
        model = build_model(dataset.schema, root.with_mask(kept))
        start = process_time()
        fit(model, dataset, config.train, device=CPU, seed=seed, report=ignore)
        seconds["alone"] = process_time() - start
        aucs["alone"].append(test_auc(model, dataset))
    torch.manual_seed(seed)
    method = configure({"method": "magnitude", "warm_epochs": config.train.epochs})
    net = load("magnitude").Supernet(dataset.schema, root, method, dataset.counts, seed)
    start = process_time()
    search(net, dataset, config.train, device=CPU, seed=seed, report=ignore)
    trained = process_time() - start
    for way, epochs in WAYS.items():
        aucs[way], seconds[way] = [], trained
        for width in WIDTHS:
            kept = np.broadcast_to(np.arange(root.dim) < width, root.mask().shape)
            model = net.compact(net.parent_with(kept))
            if epochs:
                start = process_time()
                recipe = config.train.model_copy(update={"epochs": epochs, "lr": config.train.lr * 0.3})
                fit(model, dataset, recipe, device=CPU, seed=seed + 1, report=ignore)
                seconds[way] += process_time() - start
            aucs[way].append(test_auc(model, dataset))
    return aucs, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adult", required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# Five sizes from one nested training",
        "",
        f"`python tests/benchmarks/nested.py --adult {args.adult} --seeds {args.seeds} --out {args.out}`",
        "",
        "Test AUC less that of the same width trained alone, paired by seed: mean ± standard error. Cost: CPU seconds "
        "of the nested training and of what follows it for all five widths, in plain trainings of width 16.",
        "",
        "| data | way | " + " | ".join(f"width {width}" for width in WIDTHS) + " | cost |",
        "|---|---|" + "---|" * (len(WIDTHS) + 1),
    ]
    with tempfile.TemporaryDirectory() as cache:
        for name, path in SPACES.items():
            space, found = SearchSpace.read(Path(path)), []
            for seed in range(args.seeds):
                dataset = prepare(space, args.adult if name == "adult" else None, seed, Path(cache))
                found.append(measure(space, dataset, seed))
            alone = np.array([aucs["alone"] for aucs, _ in found])
            cells = [f"{mean:.4f}" for mean in alone.mean(axis=0)]
            lines.append(f"| {name} | trained alone, test AUC | {' | '.join(cells)} | 5 trainings |")
            for way in WAYS:
                gains = np.array([aucs[way] for aucs, _ in found]) - alone
                errors = gains.std(axis=0, ddof=1) / len(found) ** 0.5
                cells = [f"{mean:+.4f} ± {error:.4f}" for mean, error in zip(gains.mean(axis=0), errors, strict=True)]
                cost = np.mean([seconds[way] / seconds["alone"] for _, seconds in found])
                lines.append(f"| {name} | {way} | {' | '.join(cells)} | {cost:.1f} |")
            print("\n".join(lines[-4:]), flush=True)
            args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
