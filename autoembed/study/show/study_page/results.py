"""Sections of a study's page: arms, bytes, the best architecture, curves of training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from autoembed.architecture import Architecture
from autoembed.frontier.picture import in_bytes
from autoembed.plans import Block
from autoembed.study.results import pareto
from autoembed.study.results.leaderboard import eligible
from autoembed.study.show.page import dims_panels
from autoembed.study.show.study_page.charts import Mark, curves, scatter, whisker
from autoembed.study.show.study_page.facts import StudyFacts
from autoembed.study.show.study_page.markup import Html, code, details, join, prose, scroll, table, tag
from autoembed.study.show.study_page.verdict import holm, interval
from autoembed.study.show.tables import legible
from autoembed.task import columns, metric_of, of_labels, present, task_of, titled

FIELDS = 150  # rows of the widest tables
POINTS = 1500  # of a plot
_PAIRS = 60


def leaderboard(facts: StudyFacts) -> Html:
    """Each arm's best trial with the interval of its first metric on test."""
    board = facts.board
    first, *others = present(board.predicts, (row.test for row in board.rows))
    found = {row.arm: interval(row, first.name) for row in board.rows}
    spans = [own for own in found.values() if own]
    ends = (min(one[1] for one in spans), max(one[2] for one in spans)) if spans else (0.0, 1.0)
    heads = ["arm", "trial", titled(board.metric), f"test {first.title}", "95 % interval", ""]
    heads += [f"test {one.title}" for one in others]
    heads += ["embedding bytes", "all bytes", "ms per 1,000 rows", "done / pruned / failed"]
    rows: list[list[object]] = []
    best = -1
    for number, row in enumerate(board.rows):
        best = number if row.trial == board.winner else best
        counts = f"{row.done} / {row.pruned} / {row.failed}"
        if row.trial is None or row.valid is None or row.test is None:
            rows.append([legible(row.arm), "–", *["–"] * (len(heads) - 3), counts])
            continue
        span = found[row.arm]
        cells: list[object] = [f"{row.valid[board.metric.partition('_')[2]]:.4f}", f"{row.test[first.name]:.4f}"]
        if span is None:
            cells += ["–", ""]
        else:
            told = f"{span[1]:.4f} to {span[2]:.4f}"
            cells += [told, whisker(*span, ends, f"{row.arm}: {span[0]:.4f}, 95 % interval {told}")]
        cells += [row.test.shown(one.name, "–") for one in others]
        champion = facts.champions.get(row.arm)
        latency = "–" if champion is None else f"{champion.result.latency_ms:.2f}"
        cells += [_whole(row.embedding_bytes), _whole(row.bytes), latency]
        rows.append([legible(row.arm), row.trial, *cells, counts])
    note = tag(
        "p",
        "The best trial of each arm by valid; the test split was read once for each. Intervals are of the rows of test "
        "alone: another seed would move the figures too.",
        class_="mute",
    )
    return join(
        [
            note,
            table("leaderboard", heads, rows, left=2, best=best),
            _auxiliary(facts),
            _seeds(facts),
            _bound(facts),
            _groups(facts),
        ]
    )


def _auxiliary(facts: StudyFacts) -> Html | None:
    """The metrics of auxiliary labels."""
    names = facts.board.further
    if not names:
        return None
    rows = [
        [legible(row.arm), *(f"{row.further[name]:.4f}" if name in row.further else "–" for name in names)]
        for row in facts.board.rows
    ]
    return join([tag("h3", "Auxiliary labels"), table("auxiliary labels", ["arm", *map(titled, names)], rows)])


def _seeds(facts: StudyFacts) -> Html | None:
    """Mean and sd over seeds, and the paired tests."""
    found = facts.arms
    if found is None:
        return None
    task = task_of(found["metric"])
    there = found["arms"][found["leader"]]["mean"]
    names = [task.metrics[0].monitor, *columns(task, "test", there=there), *of_labels(there, "test")]
    sign, adjusted = metric_of(found["metric"]).sign, holm(found["paired"])
    number = len(found["arms"][found["leader"]]["seeds"])
    heads = ["arm", "trial", *map(titled, names), f"{found['leader']} ahead by {titled(found['metric'])}", "p", "Holm"]
    rows = []
    for arm, one in found["arms"].items():
        gap = found["paired"].get(arm)
        apart = ["", "", ""]
        if gap is not None:
            apart = [f"{sign * gap['mean']:+.4f} ± {gap['sd']:.4f}", f"{gap['p']:.3f}", f"{adjusted[arm]:.3f}"]
        rows.append(
            [legible(arm), one["trial"], *(f"{one['mean'][n]:.4f} ± {one['sd'][n]:.4f}" for n in names), *apart]
        )
    title = tag("h3", f"Retrained from fresh weights with {number} seeds: mean ± sd, and paired t-tests")
    best = list(found["arms"]).index(found["leader"])
    return join([title, table("arms over seeds", heads, rows, left=2, best=best)])


def _bound(facts: StudyFacts) -> Html | None:
    told = facts.board.told_bound
    return None if told is None else tag("p", told)


def _groups(facts: StudyFacts) -> Html | None:
    groups = facts.board.groups
    if not groups:
        return None
    heads = ["group", "columns planted", "kept by ranking", "embedding kept", "share of parameters"]
    rows = [
        [one.name, one.planted, one.ranked, f"{one.kept_share:.1%}", f"{one.parameter_share:.1%}"] for one in groups
    ]
    title = tag("h3", f"Planted, and found by {facts.board.rows[0].arm}")
    return join([title, table("planted and found", heads, rows)])


def plot(facts: StudyFacts) -> Html:
    """All trials by bytes and the objective's metric, and the front."""
    space = facts.space
    kind = space.objective.cost or "bytes"
    found = [one for one in pareto.points(eligible(facts.trials, space), space) if one.cost > 0][:POINTS]
    front = pareto.front(found, space)
    champions = {trial.id for trial in facts.champions.values()}
    title = titled(facts.board.metric)
    series: dict[str, list[Mark]] = {row.arm: [] for row in facts.board.rows}
    for one in found:
        cost = f"{one.cost:,.0f} bytes" if kind == "bytes" else f"{kind} {one.cost:,.6g}"
        result = one.trial.result
        says = f"{one.trial.id}: {title} {one.quality:.4f}, {cost}, {result.cost.embedding_bytes:,} of embeddings"
        mark = Mark(x=one.cost, y=one.quality, says=says, hollow=one.trial.id not in champions)
        series[one.trial.arm].append(mark)
    x = "bytes of the model" if kind == "bytes" else kind.replace("_", " ")
    chart = scatter(series, [(one.cost, one.quality) for one in front], x, title, bytes_=kind == "bytes")
    rows = [
        [one.trial.id, f"{one.quality:.4f}", in_bytes(one.cost) if kind == "bytes" else f"{one.cost:,.6g}",
         f"{one.trial.result.cost.embedding_bytes:,}"] for one in front
    ]  # fmt: skip
    listed = table("Pareto front", ["trial", title, x, "embedding bytes"], rows)
    note = "Filled marks are each arm's best trial; the grey line is the Pareto front. Point at a mark for its numbers."
    trials = f"{len(front)} trials" if len(front) > 1 else "1 trial"
    return join([prose(note, quiet=True), chart, details(f"The front: {trials}", listed)])


def heatmap(facts: StudyFacts) -> Html:
    """Dims times bits that each field keeps by block, for each cluster."""
    architecture = facts.best.architecture
    note = (
        f"Trial {facts.best.id}, width {architecture.dim}. A cell is dims × bits that a block of values keeps, "
        "frequent values on the left; darker cells take more bits a value, and a dot keeps nothing."
    )
    parts: list[object] = [prose(note, quiet=True)]
    for title, part in dims_panels(architecture).items():
        parts += [tag("h3", title) if title else None, _blocks(part)]
    if len(architecture.fields) > FIELDS:
        parts.append(tag("p", f"The first {FIELDS} of {len(architecture.fields)} fields.", class_="mute"))
    return join([*parts, _kinds(architecture), _pairs(facts)])


def _blocks(architecture: Architecture) -> Html:
    fields = architecture.fields[:FIELDS]
    levels = 1 + max((block.level for one in fields for block in one.blocks), default=0)
    most = max((len(block.dims) * block.bits for one in fields for block in one.blocks), default=1) or 1
    rows = []
    for one in fields:
        cells = []
        at = {block.level: block for block in one.blocks}
        starts = dict(zip((b.level for b in one.blocks), (0, *(b.stop for b in one.blocks)), strict=False))
        for level in range(levels):
            cells.append(_cell(at.get(level), starts.get(level, 0), most))
        name = tag("th", code(one.name), class_="text", scope="row")
        rows.append(tag("tr", name, tag("td", f"{one.cardinality:,}", style="--v:0"), *cells))
    heads = ["field", "values", *(f"block {level + 1}" for level in range(levels))]
    head = tag("tr", *(tag("th", text, scope="col", class_="text" if not n else None) for n, text in enumerate(heads)))
    body = tag("table", tag("thead", head), tag("tbody", *rows), class_="heat")
    return scroll(body, "dims and bits by field and block")


def _cell(block: Block | None, start: int, most: int) -> Html:
    if block is None:
        return tag("td", "", class_="none")
    told = f"{block.stop - start:,} values"
    if not block.dims:
        return tag("td", "·", class_="none", title=f"{told}, nothing kept")
    share = len(block.dims) * block.bits / most
    return tag("td", f"{len(block.dims)}×{block.bits}", style=f"--v:{share:.2f}", title=told)


def _kinds(architecture: Architecture) -> Html:
    """The backbone, how embeddings are stored, and how rows find their cluster."""
    said = [", ".join(f"{name} {_shown(value)}" for name, value in architecture.backbone.items())]
    said.append(f"{architecture.storage.kind} storage")
    if architecture.tower_bits < 32:
        said.append(f"linear layers in {architecture.tower_bits} bits")
    if architecture.ensemble:
        said.append(f"an ensemble of {architecture.ensemble.members} that share {architecture.ensemble.share}")
    if architecture.router is not None and architecture.router.kind != "all":
        reads = ", ".join(legible(one.name, 60) for one in architecture.router.fields)
        said.append(f"a row's cluster is found by {architecture.router.kind} from {reads}")
    return tag("p", f"Backbone {'; '.join(said)}.")


def _pairs(facts: StudyFacts) -> Html | None:
    """What is done with each pair of columns."""
    architecture = facts.best.architecture
    if not architecture.pairs:
        return None
    found = facts.ranking.pairs if facts.ranking is not None else None
    z = {} if found is None else {(a, b): z for a, b, z in found.select("a", "b", "synergy_z").iter_rows()}
    counts = Counter(pair.choice for pair in architecture.pairs)
    title = f"{len(architecture.pairs)} pairs: " + ", ".join(f"{number} {choice}" for choice, number in counts.items())
    ordered = sorted(architecture.pairs, key=lambda pair: (not pair.built, -z.get((pair.a, pair.b), 0.0)))
    rows = [
        [
            code(one.a),
            code(one.b),
            one.choice,
            f"{z[one.a, one.b]:.1f}" if (one.a, one.b) in z else "–",
            _whole(one.crossed) if one.crossed else "–",
        ]
        for one in ordered[:_PAIRS]
    ]
    heads = ["column", "with", "choice", "synergy z", "crossed ids"]
    more = tag("p", f"The first {_PAIRS}.", class_="mute") if len(ordered) > _PAIRS else None
    return join([tag("h3", title), table("pairs", heads, rows, left=3), more])


def training(facts: StudyFacts) -> Html | None:
    """The metric on valid of each arm's best trial, epoch by epoch: searching, and retraining."""
    monitor = facts.board.metric
    phases = {"searching (warm start, then search)": ("warm_", "search_", "refit_"), "retraining": ("",)}
    charts = []
    for title, prefixes in phases.items():
        series: dict[str, list[Mark]] = {row.arm: [] for row in facts.board.rows}
        for arm, trial in facts.champions.items():
            points = _points(facts.run.curves(trial.id), prefixes, monitor)
            series[arm] = [
                Mark(x=n, y=value, says=f"{trial.id}, epoch {n} ({phase}): {titled(monitor)} {value:.4f}")
                for n, (phase, value) in enumerate(points, 1)
            ]
        if any(series.values()):
            charts.append(tag("div", tag("h3", f"While {title}"), curves(series, "epoch", titled(monitor))))
    if not charts:
        return None
    note = (
        "The best trial of each arm. What a search's net reaches is no promise for the retrained model; where a line "
        "drops, another candidate was retrained."
    )
    return join([prose(note, quiet=True), tag("div", *charts, class_="charts")])


def _points(points: Sequence[dict[str, float]], prefixes: Sequence[str], monitor: str) -> list[tuple[str, float]]:
    found = []
    for point in points:
        for prefix in prefixes:
            if (name := f"{prefix}{monitor}") in point:
                found.append((prefix.rstrip("_") or "retrain", point[name]))
    return found


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _whole(value: float | None) -> str:
    return "–" if value is None else f"{value:,}"
