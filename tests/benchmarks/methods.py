"""Compare the arms of a search space over seeds, every arm with the same number of trials.

    python tests/benchmarks/methods.py search_spaces/kuairand.yaml --data ../shared/data/kuairand \
        --seeds 5 --out docs/results/kuairand.md

For each seed and arm, `--trials` random draws from the space's ranges are trained; the best by valid AUC is measured on
test, once. The table gives mean and sd over seeds. On planted data the seed also draws the data. The architecture found
is also trained again from fresh weights ("fresh"), which tells it apart from weights that a search hands on.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from autoembed.draws import draw, prepare
from autoembed.metrics import evaluate
from autoembed.nn.model import RoutedModel
from autoembed.retraining import calibrate, latency, retrain
from autoembed.space import SearchSpace
from autoembed.training import pick_device, predict
from autoembed.trial import run_trial


def noise_share(result, dataset):
    """Share of the embedding parameters that noise columns have, or None if the truth is not known."""
    if not dataset.truth:
        return None
    kept = {field.name: field.entries for field in result.architecture.fields}
    return sum(kept.get(name, 0) for name in dataset.truth["noise"]) / sum(kept.values())


def best_of(space, arm, dataset, seed, number, trials, change=lambda config: config):
    """The best by the objective of some random draws: (result, its model, test metrics, mean seconds of each phase)."""
    rng = np.random.default_rng([seed, number])
    best, spent, sign = None, [0.0, 0.0], 1 if space.objective.mode == "max" else -1
    for _ in range(trials):
        config = change(space.config(arm, draw(space.ranges(arm), rng), seed))
        result, model = run_trial(config, dataset, lambda values: None)
        spent[0] += result.search_seconds / trials
        spent[1] += result.retrain_seconds / trials
        if best is None or sign * space.objective.of(result.valid) > sign * space.objective.of(best[0].valid):
            best = result, model
    result, model = best
    test = evaluate(dataset.labels("test"), predict(model, dataset, "test", pick_device(result.config.device)))
    return result, model, test, spent


def anew(result, model, dataset, seed):
    """Test metrics of a trial's architecture, trained from fresh weights with its own recipe."""
    device = pick_device(result.config.device)
    router = getattr(model, "router", None)
    fresh, _ = retrain(
        result.architecture,
        dataset,
        result.config.train,
        device,
        seed,
        lambda values: None,
        router=router,
        monitor=result.config.monitor,
    )
    return evaluate(dataset.labels("test"), predict(fresh, dataset, "test", device))


@torch.no_grad()
def cluster_facts(result, model, dataset):
    """Of a routed model: rows and embedding parameters of each cluster, the router's bytes, and test with calibration.

    None for one model, and for an ensemble, whose members all see all rows.
    """
    if getattr(model, "router", None) is None:
        return None
    router = [*model.router.parameters(), *model.router.buffers()]
    cluster = model.router(torch.from_numpy(dataset.ids("test")))
    plan = result.architecture.router.model_copy(update={"calibrate": True})
    scaled = RoutedModel(dataset.schema, result.architecture.replace(router=plan))
    scaled.load_state_dict(model.state_dict(), strict=False)
    calibrate(scaled, dataset, torch.device("cpu"))
    return {
        "share": sorted((torch.bincount(cluster, minlength=len(model.models)) / len(cluster)).tolist(), reverse=True),
        "parameters": [sum(t.numel() for t in part.embedding_weights()) for part in model.models],
        "router_bytes": sum(tensor.numel() * tensor.element_size() for tensor in router),
        "calibrated": evaluate(dataset.labels("test"), predict(scaled, dataset, "test", torch.device("cpu"))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("space", type=Path)
    parser.add_argument("--data")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    space = SearchSpace.read(args.space)
    rows = {arm: [] for arm in space.arms()}
    with tempfile.TemporaryDirectory() as cache:
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            dataset = prepare(space, args.data, seed, Path(cache))
            for number, arm in enumerate(rows):
                result, model, test, spent = best_of(space, arm, dataset, seed, number, args.trials)
                fresh = anew(result, model, dataset, seed)
                facts = latency(model, dataset, torch.device("cpu")), cluster_facts(result, model, dataset)
                rows[arm].append((result, test, noise_share(result, dataset), spent, fresh, *facts))
                print(
                    f"seed {seed} {arm:10} valid {result.valid.auc:.4f} test {test.auc:.4f} fresh {fresh.auc:.4f} "
                    f"embedding {result.cost.embedding_parameters:,}",
                    file=sys.stderr,
                    flush=True,
                )
            report = table(rows, args, space, dataset)
            if args.out:
                args.out.parent.mkdir(parents=True, exist_ok=True)
                args.out.write_text(report)
    print(report)


def spread(values, digits=4):
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {sd:.{digits}f}"


def table(rows, args, space, dataset) -> str:
    planted = dataset.truth is not None
    data = f" --data {args.data}" if args.data else ""
    lines = [
        f"# {args.space.name}: arms at one budget",
        "",
        f"`python tests/benchmarks/methods.py {args.space}{data} --seeds {args.seeds} "
        f"--first-seed {args.first_seed} --trials {args.trials}`",
        "",
        f"{len(rows[space.arms()[0]])} seeds, {args.trials} random draws an arm and seed, the best by valid measured "
        "once on test; mean ± sd. "
        f"{len(dataset.schema.fields)} fields, {sum(dataset.schema.cardinalities):,} ids, "
        f"{dataset.rows('train'):,} / {dataset.rows('valid'):,} / {dataset.rows('test'):,} rows. "
        f"torch {torch.__version__}, {args.threads} thread(s), {os.cpu_count()} cores, {platform.machine()}.",
        "",
        "| arm | test AUC | test logloss | test AUC, fresh | valid AUC | embedding parameters | bytes "
        "| ms per 1,000 rows | search s | retrain s |" + (" noise share |" if planted else ""),
        "|---|---|---|---|---|---|---|---|---|---|" + ("---|" if planted else ""),
    ]
    for arm, found in rows.items():
        results, tests = [f[0] for f in found], [f[1] for f in found]
        line = [
            arm,
            spread([t.auc for t in tests]),
            spread([t.logloss for t in tests]),
            spread([f[4].auc for f in found]),
            spread([r.valid.auc for r in results]),
            f"{statistics.mean(r.cost.embedding_parameters for r in results):,.0f}",
            f"{statistics.mean(r.cost.bytes for r in results):,.0f}",
            f"{statistics.median(f[5] for f in found):.1f}",
            f"{statistics.mean(f[3][0] for f in found):.1f}",
            f"{statistics.mean(f[3][1] for f in found):.1f}",
        ]
        if planted:
            line.append(f"{statistics.mean(f[2] for f in found):.2f}")
        lines.append("| " + " | ".join(line) + " |")
    first = rows[next(iter(rows))]
    lines += ["", f"Test AUC of {next(iter(rows))} minus each baseline's, paired by seed, and with both fresh:", ""]
    for arm in list(rows)[1:]:
        parts = []
        for auc in (lambda f: f[1].auc, lambda f: f[4].auc):
            gaps = [auc(a) - auc(b) for a, b in zip(first, rows[arm], strict=True)]
            parts.append(f"{spread(gaps)}, ahead in {sum(gap > 0 for gap in gaps)} of {len(gaps)}")
        lines.append(f"- {arm}: {parts[0]}; fresh {parts[1]}")
    return "\n".join(lines + clusters(rows)) + "\n"


def clusters(rows) -> list[str]:
    """What the arms with clusters found, a line for each; nothing if there are none."""
    lines = []
    for arm, found in rows.items():
        facts = [f[6] for f in found if f[6]]
        if not facts:
            continue
        plain, scaled = ([f[1] for f in found if f[6]], [f["calibrated"] for f in facts])
        gaps = {
            name: spread([getattr(b, name) - getattr(a, name) for a, b in zip(plain, scaled, strict=True)])
            for name in ("auc", "logloss")
        }
        shares = ["/".join(f"{share:.0%}" for share in fact["share"]) for fact in facts]
        kept = ["/".join(f"{number:,}" for number in fact["parameters"]) for fact in facts]
        size = statistics.mean(fact["router_bytes"] for fact in facts)
        lines.append(
            f"- {arm}: routed in {len(facts)} of {len(found)} seeds; rows {', '.join(shares)}; embedding parameters "
            f"{', '.join(kept)}; router {size:,.0f} bytes; calibrated minus plain on test: AUC {gaps['auc']}, logloss "
            f"{gaps['logloss']}"
        )
    return ["", "Clusters, per seed:", "", *lines] if lines else []


if __name__ == "__main__":
    main()
