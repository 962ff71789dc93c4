"""The command `frontier`: one search for many sizes, resume, tables and picture."""

import importlib.util
import json
import re
import shutil
import statistics
from functools import partial
from pathlib import Path

import polars as pl
import pytest
import yaml
from scipy.stats import ttest_rel

from autoembed.cli import main
from autoembed.errors import StudyError, TrialError
from autoembed.frontier import points, run
from autoembed.frontier.curves import Curves, paired
from autoembed.frontier.points import FrontierPlan, FrontierPoint, measure
from autoembed.frontier.tables import Measured, markdown
from autoembed.metrics import Metrics
from autoembed.space import SearchSpace

SPACE = {
    "data": {
        "planted": {"rows": 2000, "seed": 9, "marginal": [5, 50], "xor": [4], "low_rank": [], "noise": [10, 100]},
        "split": {"by": "random", "valid": 0.2, "test": 0.2},
    },
    "embedding": {"dim": 4, "blocks": 3},
    "stages": [{"method": "magnitude", "warm_epochs": 1}],
    "baselines": ["uniform", {"method": "uniform", "bits": 4}],
    "backbone": {"name": "deepfm", "hidden": [8], "dropout": 0.0},
    "train": {"epochs": 1, "lr": 1.0e-2, "batch_size": 256},
}
SIZES = (700, 2000, 4000)
ARMS = ("magnitude", "uniform", "uniform-2")
RANGE = {**SPACE["train"], "lr": {"log": [1.0e-3, 1.0e-1]}}


def write(folder, **changes):
    (folder / "tiny.yaml").write_text(yaml.safe_dump(SPACE | changes))
    return folder / "tiny.yaml"


def words(folder, *more):
    sizes = ",".join(map(str, SIZES))
    return ["frontier", folder / "tiny.yaml", "--bytes", sizes, "--runs", folder / "runs", "--seeds", "2", *more]


@pytest.fixture
def call(monkeypatch, capsys):
    """(exit status, stdout, stderr) of a command in this process."""

    def called(*words):
        monkeypatch.setattr("sys.argv", ["autoembed", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        out = capsys.readouterr()
        return ended.value.code, out.out, out.err

    return called


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A finished frontier: its folder, made again for each test by `finished`."""
    folder = tmp_path_factory.mktemp("frontier")
    request = run.FrontierRequest(
        space=write(folder), sizes=SIZES, seeds=2, runs=folder / "runs", command="autoembed ..."
    )
    run.run_frontier(request, lambda *_: None, lambda *_: None, lambda _: None)
    return folder


@pytest.fixture
def finished(measured, tmp_path):
    shutil.copytree(measured, tmp_path / "f")
    return tmp_path / "f"


@pytest.fixture
def asked(monkeypatch):
    """The (arm, seed) that are measured."""
    seen = []

    def counted(space, arm, dataset, seed, plan, warm):
        seen.append((arm, seed))
        return measure(space, arm, dataset, seed, plan)

    monkeypatch.setattr(run, "measure", counted)
    return seen


def results(folder):
    return folder / "runs" / "tiny-frontier"


def test_a_frontier_from_end_to_end(tmp_path, call):
    write(tmp_path)
    status, out, _ = call(*words(tmp_path, "--lines"))
    assert status == 0
    assert "magnitude" in out
    assert "uniform-2 (bits 4)" in out
    assert len(re.findall(r"^seed \d .*\(\d of 6", out, re.MULTILINE)) == 6
    folder = results(tmp_path)
    table = pl.read_parquet(folder / "frontier.parquet")
    assert table.select("arm", "seed", "size").rows() == [(a, s, n) for s in (0, 1) for a in ARMS for n in SIZES]
    whole = table.filter(pl.col("gap").is_null())
    assert whole.filter(pl.col("embedding_bytes") > pl.col("size")).is_empty()
    assert whole.drop("gap").null_count().row(0) == (0,) * (table.width - 1)
    gaps = table.filter(pl.col("gap").is_not_null())
    assert gaps.select("arm", "size").unique().rows() == [("uniform", 700)]
    assert gaps["test_auc"].is_null().all()
    assert "one dim for every value" in gaps["gap"][0]
    # One search for all sizes.
    assert whole.group_by("arm", "seed").agg(pl.col("search_seconds").n_unique())["search_seconds"].to_list() == [1] * 6
    # The seed draws planted data: the noise-free truth is another one.
    lines = [json.loads(line) for line in (folder / "frontier.jsonl").read_text().splitlines()]
    assert len({line["data"] for line in lines[1:]}) == 2
    assert (folder / "frontier.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (folder / "frontier.svg").read_text()


def tables_of(page):
    """{heading: {first cell: the others}} of the tables of a page."""
    found = {}
    for part in page.split("\n## ")[1:]:
        heading, *lines = part.splitlines()
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
        found[heading] = {row[0]: row[1:] for row in rows[2:]}
    return found


def test_the_page_has_the_numbers_of_the_parquet(finished):
    table = pl.read_parquet(results(finished) / "frontier.parquet")
    page = (results(finished) / "frontier.md").read_text()
    found = tables_of(page)

    def values(arm, size, name):
        return table.filter(arm=arm, size=size).sort("seed")[name].to_list()

    labels = dict(zip(ARMS, ("magnitude", "uniform", "uniform-2 (bits 4)"), strict=True))
    for heading, name in (("Test AUC", "test_auc"), ("Test logloss", "test_logloss")):
        for arm, label in labels.items():
            for size, cell in zip(SIZES, found[heading][label], strict=True):
                own = values(arm, size, name)
                whole = None not in own
                wanted = f"{statistics.mean(own):.4f} ± {statistics.stdev(own):.4f}" if whole else "–"
                assert cell == wanted
    for heading, name in (("Bytes of the embeddings", "embedding_bytes"), ("Bytes of the model", "bytes")):
        assert found[heading]["magnitude"] == [f"{statistics.mean(values('magnitude', n, name)):,.0f}" for n in SIZES]
    one, other = (values(arm, 4000, "test_auc") for arm in ("magnitude", "uniform"))
    gaps = [a - b for a, b in zip(one, other, strict=True)]
    p = f"{ttest_rel(one, other).pvalue:.3f}".lstrip("0")
    error = statistics.stdev(gaps) / 2**0.5
    assert found["Against each baseline"]["uniform"][2] == f"{statistics.mean(gaps):+.4f} ± {error:.4f} ({p})"
    assert found["Against each baseline"]["uniform"][0] == "–"
    assert "magnitude" not in found["Against each baseline"]
    assert "- uniform at 700 bytes, 2 of 2 seeds: uniform needs a budget" in page
    assert "`autoembed ...`" in page


def test_a_file_that_was_cut_goes_on_where_it_ended(finished, call, asked):
    path = results(finished) / "frontier.jsonl"
    before = pl.read_parquet(results(finished) / "frontier.parquet")
    content = path.read_bytes()
    path.write_bytes(content[:-25])
    assert call(*words(finished))[0] == 0
    assert asked == [("uniform-2", 1)]
    after = pl.read_parquet(results(finished) / "frontier.parquet")
    seconds = ["search_seconds", "retrain_seconds"]
    assert after.drop(seconds).equals(before.drop(seconds))
    assert len(path.read_text().splitlines()) == 7
    call(*words(finished))
    assert len(asked) == 1


def test_ctrl_c_keeps_what_is_done(tmp_path, call, monkeypatch):
    write(tmp_path)

    def interrupted(space, arm, dataset, seed, plan, warm):
        if arm == "uniform-2":
            raise KeyboardInterrupt
        return measure(space, arm, dataset, seed, plan)

    monkeypatch.setattr(run, "measure", interrupted)
    status, _, err = call(*words(tmp_path))
    assert status == 130
    assert err == "interrupted: what is done is kept; the same command goes on\n"
    assert len((results(tmp_path) / "frontier.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("changes", "more", "line"),
    [
        ({"train": {**SPACE["train"], "lr": 0.02}}, [], r"another search space \(train differs\)"),
        ({"baselines": ["uniform"]}, [], r"another search space \(baselines differs\)"),
        ({}, ["--bytes", "700,2000"], "another list of --bytes"),
        ({}, ["--of", "model"], "another --of"),
        ({"train": {**SPACE["train"], "lr": 0.02}}, ["--out", "{folder}/other"], None),
        ({"device": "cpu", "scheduler": "none"}, [], None),
    ],
)
def test_another_space_or_plan_is_refused(finished, call, monkeypatch, changes, more, line):
    write(finished, **changes)
    monkeypatch.setattr(
        run, "measure", lambda space, arm, *_: [FrontierPoint(arm=arm, seed=0, size=n, gap="-") for n in SIZES]
    )
    status, _, err = call(*words(finished, *(word.format(folder=finished) for word in more)))
    assert status == (0 if line is None else 2)
    if line is not None:
        assert re.search(line, err), err


def test_other_data_are_refused(finished, call):
    path = results(finished) / "frontier.jsonl"
    head, first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([head, json.dumps({**json.loads(first), "data": "0" * 16}), *rest[2:]]) + "\n")
    status, _, err = call(*words(finished))
    assert status == 2
    assert "the data have changed since" in err


def test_a_corrupt_file_is_named(finished, call):
    path = results(finished) / "frontier.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:40], *lines[2:]]) + "\n")
    status, _, err = call(*words(finished))
    assert status == 2
    assert "frontier.jsonl is corrupt" in err


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (["--bytes", "20k"], "--bytes must be whole numbers with commas between them, but got '20k'"),
        (["--bytes", "0,5"], "--bytes must be different whole numbers above 0"),
        (["--bytes", "5,5"], "--bytes must be different whole numbers above 0"),
        (["--seeds", "0"], "--seeds must be at least 1, but got 0"),
        (["--jobs", "0"], "--jobs must be at least 1, but got 0"),
        (["--trials", "0"], "--trials must be at least 1, but got 0"),
        (["--of", "tower"], "--of must be embeddings or model, but got 'tower'"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(tmp_path, call, more, line):
    write(tmp_path)
    status, _, err = call(*words(tmp_path, *more))
    assert status == 2
    assert err.startswith(f"error: {line}")
    assert len(err.splitlines()) == 1


def test_two_processes_find_what_one_finds(finished, call):
    before = pl.read_parquet(results(finished) / "frontier.parquet")
    more = ["--jobs", "2", "--seeds", "1", "--out", finished / "two"]
    assert call(*words(finished, *more))[0] == 0
    after = pl.read_parquet(finished / "two" / "frontier.parquet")
    names = ["arm", "size", "valid_auc", "test_auc", "bytes", "gap"]
    assert after.select(names).equals(before.filter(seed=0).select(names))


def test_the_best_draw_by_valid_is_taken_for_each_size(finished, monkeypatch, planted):
    space = SearchSpace.read(write(finished, train=RANGE, budget={"trials": 3}))
    valid = iter([{2000: 0.6, 4000: 0.7}, TrialError("the loss is not finite"), {2000: 0.7, 4000: 0.6}])
    drawn = []

    class Result:
        def __init__(self, config, auc):
            self.config, self.valid, self.notes = config, Metrics(auc=auc, logloss=1.0), ("searched",)
            self.cost, self.search_seconds, self.retrain_seconds = _Cost, 1.0, 1.0

    class _Cost:
        embedding_bytes, bytes = 10, 20

    def fake(config, limits, dataset, report, warm):
        drawn.append(config.train.lr)
        found = next(valid)
        if isinstance(found, TrialError):
            raise found
        return [(Result(config, found[limit.embedding_bytes]), object()) for limit in limits]

    read = []
    monkeypatch.setattr(points, "run_limits", fake)

    def fake_metrics(model, dataset, split, device):
        read.append(split)
        return Metrics(auc=0.5, logloss=1.0)

    monkeypatch.setattr(points, "metrics_on", fake_metrics)
    small, large = measure(space, "magnitude", planted, 4, FrontierPlan(sizes=(2000, 4000)))
    assert len(set(drawn)) == 3
    assert (small.valid.auc, small.values) == (0.7, {"train.lr": drawn[2]})
    assert (large.valid.auc, large.values) == (0.7, {"train.lr": drawn[0]})
    assert small.notes == ("1 of 3 draws failed, the first one: the loss is not finite", "searched")
    assert read == ["test", "test"]
    valid = iter([TrialError("the loss is not finite")] * 3)
    with pytest.raises(TrialError, match="arm magnitude, seed 4: the loss is not finite"):
        measure(space, "magnitude", planted, 4, FrontierPlan(sizes=(2000, 4000)))


def test_how_few_bytes_are_enough(finished):
    space = SearchSpace.read(write(finished, objective={"minimize": "valid.logloss"}))
    aucs = {"magnitude": (0.800, 0.8195, 0.820), "uniform": (None, 0.81, 0.8185), "uniform-2": (0.81, 0.809, 0.805)}
    made = [
        FrontierPoint(arm=arm, seed=seed, size=size, gap="too small")
        if auc is None or (arm, size, seed) == ("uniform-2", 4000, 1)
        else FrontierPoint(
            arm=arm,
            seed=seed,
            size=size,
            test_auc=auc + seed / 100,
            test_logloss=1 - auc + seed / 1000,
            embedding_bytes=size,
            bytes=2 * size,
        )
        for arm, own in aucs.items()
        for size, auc in zip(SIZES, own, strict=True)
        for seed in (0, 1)
    ]
    curves = Curves(space=space, plan=FrontierPlan(sizes=SIZES), points=made, seconds={(arm, 0): 1.0 for arm in ARMS})
    best = curves.best()
    assert best[1:] == ("magnitude", 4000)
    assert best[0] == pytest.approx(0.825)
    assert [curves.full(arm) for arm in ARMS] == pytest.approx([0.825, 0.8235, 0.814])
    assert [curves.enough(arm, curves.full(arm)) for arm in ARMS] == [2000, 4000, 700]
    assert [curves.enough(arm, best[0]) for arm in ARMS] == [2000, None, None]
    assert curves.sizes_of("uniform-2") == [700, 2000]  # with every seed
    gap = curves.gap_to("magnitude", "uniform", 4000)
    assert gap.mean == pytest.approx(-0.0015)
    assert curves.gap_to("magnitude", "uniform", 700) is None
    # Seeds are .01 apart in every arm, in logloss .001: nothing of that is left in the band.
    assert curves.levels[1] - curves.levels[0] == pytest.approx(0.001)
    assert curves.spread("magnitude", 700) == pytest.approx(0, abs=1e-12)
    facts = Measured(title="t", command="c", fields=1, values=2, rows={"train": 3}, planted=False, threads=1, jobs=1)
    page = markdown(curves, facts)
    assert "Below 0 is better" in page
    assert "- uniform-2 (bits 4) at 4,000 bytes, 1 of 2 seeds: too small" in page
    assert tables_of(page)["Test AUC"]["uniform-2 (bits 4)"][2] == "0.8050 (1 of 2 seeds)"


def test_the_table_has_metrics_within_groups_where_there_are_some(finished):
    space, plan = SearchSpace.read(write(finished)), FrontierPlan(sizes=SIZES)
    plain = {"test_auc": 0.7, "test_logloss": 0.5}
    within = {"test_gauc": 0.6, "test_ndcg_10": 0.5, "test_hit_10": 0.4}
    gap = FrontierPoint(arm="uniform", seed=0, size=700, gap="too small")
    for more in ({}, within):
        made = [gap, FrontierPoint(arm="magnitude", seed=0, size=700, **plain, **more)]
        table = Curves(space=space, plan=plan, points=made, seconds={}).table()
        found = {name: table[name].to_list() for name in table.columns if name in plain | within}
        assert found == {name: [None, value] for name, value in (plain | more).items()}


def test_arms_of_one_method_are_told_apart_by_their_options(tmp_path):
    stage = {"method": "magnitude", "warm_epochs": 3}
    baselines = [{**stage, "basis": "plain"}, "dnis", {**stage, "warm_train": {"lr": {"log": [0.1, 1.0]}}}]
    space = SearchSpace.read(write(tmp_path, stages=[stage], baselines=baselines, variants={"a": {}}))
    labels = Curves(space=space, plan=FrontierPlan(sizes=SIZES), points=[], seconds={}).labels()
    assert labels == {
        "magnitude@a": "magnitude@a",
        "magnitude-2@a": "magnitude-2@a (basis plain)",
        "dnis@a": "dnis@a",
        "magnitude-3@a": "magnitude-3@a (warm_train lr log [0.1, 1.0])",
    }


def test_a_paired_difference_without_spread_or_with_one_seed():
    assert (paired([0.1]).error, paired([0.1]).p) == (None, None)
    assert paired([0.0, 0.0]).p == 1
    assert paired([0.25, 0.25]).p == 0


def test_two_commands_do_not_share_a_folder(finished):
    from autoembed.frontier.store import locked

    request = run.FrontierRequest(space=finished / "tiny.yaml", sizes=SIZES, runs=finished / "runs")
    silent = partial(run.run_frontier, request, lambda *_: None, lambda *_: None, lambda _: None)
    with locked(results(finished)), pytest.raises(StudyError, match="another process is at work"):
        silent()


def test_movielens_becomes_a_click_table_split_by_time_for_each_user(tmp_path, monkeypatch):
    path = Path(__file__).parent / "benchmarks" / "ml100k.py"
    spec = importlib.util.spec_from_file_location("ml100k", path)
    ml100k = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(ml100k)
    ratings = [f"{user}\t{film}\t{1 + film % 5}\t{1000 - film}" for user in (7, 8) for film in range(10)]
    kinds = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
    (tmp_path / "ml-100k.inter").write_text("\n".join([kinds, *ratings]) + "\n")
    users = "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n7\t24\tM\twriter\t00101\n"
    (tmp_path / "ml-100k.user").write_text(users + "8\t30\tF\tother\t00102\n")
    films = "".join(f'{film}\tThe "Film"\t1995\tDrama War\n' for film in range(10))
    (tmp_path / "ml-100k.item").write_text(
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n" + films
    )
    monkeypatch.setattr("sys.argv", ["ml100k.py", str(tmp_path), str(tmp_path / "out")])
    ml100k.main()
    train, valid, test = (pl.read_parquet(tmp_path / "out" / f"{name}.parquet") for name in ("train", "valid", "test"))
    assert train.columns == ["label", "user", "item", "age", "gender", "occupation", "zip", "genre", "year"]
    assert train.group_by("user").len().sort("user").rows() == [("7", 8), ("8", 8)]
    # The first films are the latest ones here.
    assert valid.select("user", "item", "label").rows() == [("7", "1", 0), ("8", "1", 0)]
    assert test.row(0) == (0, "7", "0", "24", "M", "writer", "00101", "Drama War", "1995")
    assert train.filter(pl.col("label") == 1)["item"].unique().sort().to_list() == ["3", "4", "8", "9"]
