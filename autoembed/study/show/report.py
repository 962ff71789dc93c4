"""What there is to see of a study, an architecture, a bundle or a ranking: tables for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from autoembed.study.show.tables import make_table, print_table
from autoembed.study.show.tables import stdout as stdout
from autoembed.task import Metric, columns, task_of, titled, under

if TYPE_CHECKING:
    import polars as pl

    from autoembed.architecture import Architecture
    from autoembed.bundle import Bundle
    from autoembed.frontier.curves import Curves
    from autoembed.ranking.quality import Finding
    from autoembed.ranking.ranking import Ranking
    from autoembed.space import SearchSpace
    from autoembed.study.results.leaderboard import Leaderboard, Row
    from autoembed.study.results.pareto import Point
    from autoembed.study.results.retrain import ArmsContent
    from autoembed.study.run_dir import Ended, RunDir
    from autoembed.trial import TrialResult

SHOWN = 5
SHOWN_PAIRS = 20


def show_leaderboard(console: Console, run: RunDir, board: Leaderboard) -> None:
    """Prints the arms with the winner by valid marked, planted beside found, failures, and the paths."""
    metric = titled(board.metric)
    first, *others = task_of(board.metric).metrics
    table = make_table(
        f"{run.name}: the best trial of each arm by {metric}",
        *(" ", "arm", f"valid\n{first.title}", f"test\n{first.title}", "± by\nits rows"),
        *(f"test\n{one.title}" for one in others),
        *("embedding\nparams", "embedding\nbytes", "all\nbytes"),
        *("search\ns", "retrain\ns", "trials\ndone/pruned/\nfailed"),
        left=2,
    )
    for row in board.rows:
        won = row.trial == board.winner
        table.add_row("►" if won else "", row.arm, *_cells(row, [first, *others]), style="bold green" if won else None)
    print_table(console, table)
    if board.best_test_auc is not None:
        console.print(f"  No model can expect a test AUC above {board.best_test_auc:.4f} on these planted data.\n")
    _show_groups(console, board)
    show_failures(console, run.ended())
    console.print(f"  best trial   {run.trial(board.winner)}", soft_wrap=True)
    if run.best.is_dir():
        console.print(f"  best bundle  {run.best}", soft_wrap=True)
    if (run.path / "mlflow.json").is_file():
        console.print(f"  MLflow       autoembed ui --runs {run.path.parent}", soft_wrap=True)


def show_sizes(console: Console, found: Sequence[tuple[TrialResult, Path]], title: str) -> None:
    """Prints what one search gave within each of several limits."""
    metrics = (titled(name) for name in under("valid", found[0][0].valid))
    table = make_table(title, "bundle", *metrics, "embedding\nparams", "all\nparams", "bytes")
    for result, path in found:
        cost = result.cost
        cells = (f"{cost.embedding_parameters:,}", f"{cost.parameters:,}", f"{cost.bytes:,}")
        table.add_row(Text(str(path)), *(f"{value:.4f}" for _, value in result.valid.items()), *cells)
    print_table(console, table)


def show_front(console: Console, kept: Sequence[Point], space: SearchSpace) -> None:
    """Prints the Pareto front by rising cost, the knee marked."""
    from autoembed.study.results.pareto import pick

    knee = pick(kept, "knee").id
    metric, cost = titled(space.objective.metric), space.objective.cost or "bytes"
    names = ("trial", metric, cost, "embedding\nparams", "ms per\n1,000 rows")
    table = make_table(f"Pareto front of {metric} and {cost}", " ", *names, left=2)
    for point in kept:
        result, own = point.trial.result, point.trial.id == knee
        cells = (f"{point.quality:.4f}", f"{point.cost:,.6g}" if cost == "latency_ms" else f"{point.cost:,.0f}")
        parameters = f"{result.cost.embedding_parameters:,}"
        style = "bold" if own else None
        table.add_row(
            "knee" if own else "", point.trial.id, *cells, parameters, f"{result.latency_ms:.2f}", style=style
        )
    print_table(console, table)
    console.print("  export one: autoembed export RUN OUT --pick knee | 'smallest-within 0.001' | ID")


def _cells(row: Row, metrics: Sequence[Metric]) -> list[str]:
    trials = f"{row.done}/{row.pruned}/{row.failed}"
    if row.valid is None or row.test is None:
        return [*["-"] * (7 + len(metrics)), trials]
    first, *others = (one.name for one in metrics)
    return [
        f"{row.valid[first]:.4f}",
        f"{row.test[first]:.4f}",
        "-" if row.test_auc_error is None else f"{row.test_auc_error:.4f}",
        *(f"{row.test[name]:.4f}" for name in others),
        f"{row.embedding_parameters:,}",
        "-" if row.embedding_bytes is None else f"{row.embedding_bytes:,}",
        f"{row.bytes:,}",
        f"{row.search_seconds:.1f}",
        f"{row.retrain_seconds:.1f}",
        trials,
    ]


def _show_groups(console: Console, board: Leaderboard) -> None:
    if not board.groups:
        return
    table = make_table(
        f"Planted, and found by {board.rows[0].arm}",
        *("group", "columns\nplanted", "kept by\nranking", "embedding\nkept", "share of\nparameters"),
    )
    for group in board.groups:
        shares = (f"{group.kept_share:.1%}", f"{group.parameter_share:.1%}")
        table.add_row(group.name, str(group.planted), str(group.ranked), *shares)
    print_table(console, table)


def show_failures(console: Console, ended: list[Ended]) -> None:
    """Prints why trials failed or were stopped: equal reasons together, those that differ in figures by an example."""
    for state, words in (("pruned", "were stopped"), ("failed", "failed")):
        kinds: dict[str, list[Ended]] = {}
        for trial in ended:
            if trial.state == state:
                kind = trial.reason if state == "failed" else trial.reason.partition(":")[0]
                kinds.setdefault(kind, []).append(trial)
        if not kinds:
            continue
        console.print(f"  {sum(map(len, kinds.values()))} of {len(ended)} trials {words}:", style="yellow")
        for alike in sorted(kinds.values(), key=len, reverse=True)[:SHOWN]:
            others = f" and {len(alike) - 1} more" if len(alike) > 1 else ""
            console.print(Text(f"    {alike[0].id}{others}: {alike[0].reason}"), soft_wrap=True)
        console.print()


def show_unfinished(console: Console, run: RunDir) -> None:
    """Prints how far a study without a leaderboard has come, by valid: test is read at the end only."""
    from autoembed.space import SearchSpace
    from autoembed.study.results.leaderboard import best, eligible

    space, ended, done = SearchSpace.read(run.space), run.ended(), run.trials()
    metrics = columns(space.data.task, "valid")
    names = ("arm", "best trial so far", *map(_two_lines, metrics), "done", "pruned", "failed")
    table = make_table(f"{run.name}: not finished", *names, left=2)
    counts = Counter((trial.arm, trial.state) for trial in ended)
    for arm in dict.fromkeys(trial.arm for trial in ended):
        own = [trial for trial in eligible(done, space) if trial.arm == arm]
        first = best(own, space) if own else None
        valid = first.result.valid if first else None
        cells = [f"{valid[one.name]:.4f}" if valid else "-" for one in metrics.values()]
        numbers = (str(counts[arm, state]) for state in ("done", "pruned", "failed"))
        table.add_row(arm, first.id if first else "-", *cells, *numbers)
    print_table(console, table)
    show_failures(console, ended)
    console.print("  Go on with it: autoembed search SPACE --resume (and --name, if it has one)")


def show_architecture(console: Console, architecture: Architecture, title: str) -> None:
    """Prints per field how many dims its blocks keep and in how many bits, frequent values first."""
    from autoembed.budget import first_order

    few = architecture.few_bits
    kept = "dims x bits kept per block,\nfrequent to rare" if few else "dims kept per block,\nfrequent to rare"
    table = make_table(title, "field", "values", kept, "parameters", "of full", "bytes")
    storage = architecture.storage if architecture.storage.kind == "sparse" else architecture.mixed()
    for field in architecture.fields:
        dims = " ".join(f"{len(b.dims)}x{b.bits}" if few and b.dims else str(len(b.dims)) for b in field.blocks)
        share = field.entries / (field.cardinality * architecture.dim)
        held = storage.bytes([field], architecture.dim, first_order=first_order(architecture))
        table.add_row(
            Text(field.name), f"{field.cardinality:,}", dims, f"{field.entries:,}", f"{share:.0%}", f"{held:,}"
        )
    print_table(console, table)
    show_clusters(console, architecture)
    backbone = ", ".join(f"{name}={value}" for name, value in architecture.backbone.items())
    rounded = f", linear layers in {architecture.tower_bits} bits" if architecture.tower_bits < 32 else ""
    console.print(f"  width {architecture.dim}, backbone {backbone}{rounded}", soft_wrap=True)
    if cost := architecture.cost:
        console.print(
            f"  {cost.embedding_parameters:,} embedding parameters in {cost.embedding_bytes:,} bytes, "
            f"{cost.parameters:,} parameters in all in {cost.bytes:,} bytes",
            soft_wrap=True,
        )


def show_choices(console: Console, architecture: Architecture, synergy: pl.DataFrame | None) -> None:
    """Prints what is done with each pair, those that cost something first; nothing if there are no pairs."""
    if not architecture.pairs:
        return
    z = {} if synergy is None else {(a, b): z for a, b, z in synergy.select("a", "b", "synergy_z").iter_rows()}
    counts = Counter(pair.choice for pair in architecture.pairs)
    title = f"{len(architecture.pairs)} pairs: " + ", ".join(f"{count} {choice}" for choice, count in counts.items())
    table = make_table(title, "column", "with", "choice", "synergy z", "crossed ids", "of pairs", "parameters", left=3)
    colours = {"memorize": "dark_orange", "factorize": "blue"}
    for pair in architecture.built:
        crossed = pair.crossed * architecture.pair_dim if pair.choice == "memorize" else None
        table.add_row(
            Text(pair.a),
            Text(pair.b),
            Text(pair.choice, style=colours[pair.choice]),
            f"{z[pair.a, pair.b]:.1f}" if (pair.a, pair.b) in z else "-",
            f"{pair.crossed:,}",
            f"{pair.distinct:,}",
            "shared" if crossed is None else f"{crossed:,}",
        )
    print_table(console, table)
    if factors := architecture.factors():
        rows = sum(factors.values())
        console.print(
            f"  factorized pairs share the embeddings of {len(factors)} columns, "
            f"{rows * architecture.pair_dim:,} parameters"
        )


def show_clusters(console: Console, architecture: Architecture) -> None:
    """Prints how many dims each cluster's model keeps of each field, and how a row finds its own; or of an ensemble."""
    if ensemble := architecture.ensemble:
        shared = {"tables": "the tables", "all": "tables and backbone"}[ensemble.share]
        console.print(
            f"  an ensemble of {ensemble.members} members that share {shared}, the mean of whose logits counts"
        )
    if architecture.router is None:
        return
    clusters, router = architecture.clusters, architecture.router
    if router.kind == "all":
        console.print(f"  an ensemble of {len(clusters)} such models, the mean of whose logits counts")
        return
    title = f"{len(clusters)} clusters: mean dims kept of a field's values"
    table = make_table(title, "field", *(f"cluster {number}" for number in range(1, len(clusters) + 1)))
    for field in architecture.fields:
        kept = [{plan.name: plan.entries for plan in cluster.fields}.get(field.name) for cluster in clusters]
        cells = ("-" if entries is None else f"{entries / field.cardinality:.1f}" for entries in kept)
        table.add_row(Text(field.name), *cells)
    print_table(console, table)
    reads = ", ".join(field.name for field in router.fields)
    console.print(f"  a row's cluster is found by {router.kind} from {reads}", soft_wrap=True)


def show_bundle(console: Console, bundle: Bundle) -> None:
    """Prints a bundle's origin, metrics and architecture."""
    manifest = bundle.manifest
    show_architecture(console, bundle.architecture, f"bundle {bundle.path}")
    console.print(f"  made by autoembed {manifest.autoembed} at {manifest.created}")
    for name, facts in (("from", manifest.provenance), ("metrics", manifest.metrics)):
        console.print(Text(f"  {name}: {_plain(facts)}"), soft_wrap=True)


def _plain(facts: object) -> str:
    if isinstance(facts, dict):
        return ", ".join(
            f"{name} ({_plain(value)})" if isinstance(value, dict) else f"{name} {_plain(value)}"
            for name, value in facts.items()
        )
    return f"{facts:.4f}" if isinstance(facts, float) else str(facts)


def show_ranking(console: Console, ranking: Ranking, title: str, top: int | None) -> None:
    """Prints a ranking's columns, best first, with how firm their places are if that was asked for."""
    firm = {}
    if ranking.stability is not None:
        firm = {name: f"{low}-{high}" for name, low, _, high in ranking.stability.iter_rows()}
    names = ["#", "column", "kind", "values", "coverage", "score, nats", "z", "of label", "MI", "by chance"]
    out = make_table(title, *names, *(["places on halves"] if firm else []), left=3)
    table = ranking.table
    shown = table if top is None else table.head(top)
    for place, row in enumerate(shown.iter_rows(named=True), 1):
        out.add_row(
            str(place),
            Text(row["feature"]),
            row["kind"],
            f"{row['cardinality']:,}",
            f"{row['coverage']:.1%}",
            f"{row['score']:.6f}",
            f"{row['z']:.1f}",
            f"{row['normalized']:.2%}",
            f"{row['mi']:.6f}",
            f"{row['expected_mi']:.6f}",
            *([firm[row["feature"]]] if firm else []),
        )
    print_table(console, out)
    if len(shown) < len(table):
        console.print(f"  and {len(table) - len(shown)} more: --top {len(table)} shows all")


def _head(column: str) -> str:
    """A column of field scores as people read it: AUC fall."""
    name, _, rest = column.partition("_")
    return f"{titled(f'_{name}').lstrip()} {rest}" if rest else column


def _two_lines(column: str) -> str:
    return titled(column).replace(" ", "\n")


def show_fields(console: Console, table: pl.DataFrame, title: str, top: int | None) -> None:
    """Prints the fields of a model by what it takes from them."""
    heads = ("se" if name.endswith("_se") else _head(name) for name in table.columns[1:])
    out = make_table(title, "#", "field", *heads, left=2)
    shown = table if top is None else table.head(top)
    for place, (name, *scores) in enumerate(shown.iter_rows(), 1):
        out.add_row(str(place), Text(name), *(f"{score:.5f}" for score in scores))
    print_table(console, out)
    if len(shown) < len(table):
        console.print(f"  and {len(table) - len(shown)} more: --top {len(table)} shows all")


def show_findings(console: Console, found: Sequence[Finding]) -> None:
    """Prints what to know of the data, errors first; nothing if there is nothing."""
    if not found:
        return
    out = make_table("findings", "severity", "rule", "column", "advice", "value", left=4)
    colours = {"error": "bold red", "warning": "yellow", "note": "dim"}
    for finding in found:
        severity = Text(finding.severity, style=colours[finding.severity])
        out.add_row(severity, finding.rule, Text(finding.column), finding.advice, f"{finding.value:.3g}")
    print_table(console, out)


def show_selected(console: Console, table: pl.DataFrame, title: str) -> None:
    """Prints columns in the order in which they were taken."""
    out = make_table(title, "#", "column", "gain, nats", "alone, nats", left=2)
    for place, (name, gain, alone) in enumerate(table.iter_rows(), 1):
        out.add_row(str(place), Text(name), f"{gain:.6f}", f"{alone:.6f}")
    print_table(console, out)


def show_coverage(console: Console, table: pl.DataFrame) -> None:
    """Prints which shares of a table's values are unknown to a model or missing, beside those of train."""
    order = table.with_columns(far=table["unknown"] - table["train_unknown"]).sort("far", descending=True)
    out = make_table("values that the model does not know", "field", "unknown", "in train", "missing", "in train")
    for name, unknown, missing, *train in order.drop("far").head(SHOWN_PAIRS).iter_rows():
        out.add_row(Text(name), *(f"{share:.1%}" for share in (unknown, train[0], missing, train[1])))
    print_table(console, out)
    if table.height > SHOWN_PAIRS:
        console.print(f"  and {table.height - SHOWN_PAIRS} fields more, which are no further from train")


def show_moves(console: Console, table: pl.DataFrame, title: str, top: int | None) -> None:
    """Prints the places of columns in two rankings, the largest move first."""
    out = make_table(title, "column", "first", "second", "score", "score")
    for name, first, first_score, second, second_score in (
        table.head(top or len(table))
        .select("feature", "rank_first", "score_first", "rank_second", "score_second")
        .iter_rows()
    ):
        places = ("-" if place is None else str(place) for place in (first, second))
        out.add_row(Text(name), *places, *("-" if s is None else f"{s:.6f}" for s in (first_score, second_score)))
    print_table(console, out)


def show_pairs(console: Console, table: pl.DataFrame, title: str, top: int | None) -> None:
    """Prints pairs, highest synergy first."""
    out = make_table(
        title, "#", "column", "with", "cells", "synergy, nats", "z", "joint score", "z", "MI", "by chance", left=3
    )
    shown = table.head(top or SHOWN_PAIRS)
    for place, row in enumerate(shown.iter_rows(named=True), 1):
        out.add_row(
            str(place),
            Text(row["a"]),
            Text(row["b"]),
            f"{row['cells']:,}",
            f"{row['synergy']:.6f}",
            f"{row['synergy_z']:.1f}",
            f"{row['score']:.6f}",
            f"{row['z']:.1f}",
            f"{row['mi']:.6f}",
            f"{row['expected_mi']:.6f}",
        )
    print_table(console, out)
    if len(shown) < len(table):
        console.print(f"  and {len(table) - len(shown)} more: --top {len(table)} shows all")


def show_frontier(console: Console, curves: Curves, folder: Path) -> None:
    """Prints the mean test metric of each arm by size, and where the page and the picture are."""
    labels, sizes = curves.labels(), curves.plan.sizes
    metric = titled(curves.metric)
    title = f"{metric} within these bytes; seeds: {len(curves.seeds)}"
    table = make_table(title, "arm", *(f"{size:,}" for size in sizes))
    for arm, label in labels.items():
        means = [curves.mean(arm, size, curves.metric) for size in sizes]
        table.add_row(label, *("–" if mean is None else f"{mean:.4f}" for mean in means))
    print_table(console, table)
    console.print(f"  written to {folder}/frontier.md, .png, .svg and .parquet", soft_wrap=True)


def show_arms(console: Console, found: ArmsContent, path: Path) -> None:
    """Prints each arm's retraining over seeds, and how far the leader by valid is ahead on test."""
    metric, task = titled(found["metric"]), task_of(found["metric"])
    names = [task.metrics[0].monitor, *columns(task, "test")]
    number = len(found["arms"][found["leader"]]["seeds"])
    table = make_table(
        f"each arm's best trial retrained from fresh weights, mean ± sd of {number} seeds",
        *(
            "arm",
            "trial",
            *map(titled, names),
            f"{found['leader']} ahead by\n{metric}",
            "p, paired",
        ),
        left=2,
    )
    for arm, one in found["arms"].items():
        cells = (f"{one['mean'][name]:.4f} ± {one['sd'][name]:.4f}" for name in names)
        gap = found["paired"].get(arm)
        apart = ("", "") if gap is None else (f"{gap['mean']:.4f} ± {gap['sd']:.4f}", f"{gap['p']:.3f}")
        style = "bold green" if arm == found["leader"] else None
        table.add_row(arm, one["trial"], *cells, *apart, style=style)
    print_table(console, table)
    console.print(f"  written to {path}", soft_wrap=True)


def show_seeds(console: Console, trial: str, rows: pl.DataFrame, path: Path) -> None:
    """Prints a retraining over seeds with mean and standard deviation."""
    names = [name for name in rows.columns if name.startswith(("valid_", "test_"))]
    table = make_table(
        f"{trial}: its architecture retrained from fresh weights",
        *("seed", *(_two_lines(name) for name in names), "best\nepoch", "s"),
    )
    for row in rows.iter_rows(named=True):
        cells = (f"{row[name]:.4f}" for name in names)
        table.add_row(str(row["seed"]), *cells, str(row["best_epoch"]), f"{row['seconds']:.1f}")
    table.add_section()
    spread = {"mean": rows.select(names).mean(), "sd": rows.select(names).std().fill_null(0.0)}
    for what, values in spread.items():
        table.add_row(what, *(f"{value:.4f}" for value in values.row(0)), "", "", style="bold")
    print_table(console, table)
    console.print(f"  written to {path}", soft_wrap=True)
