"""`--json` of what commands show, `--quiet`, completion, and exit statuses."""

import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import polars as pl
import pytest
import yaml

from autoembed.cli.options import print_json
from autoembed.space import SearchSpace
from autoembed.study.engine import run as engine
from autoembed.study.show.progress import Quiet, Verbose


def parsed(cli, *words):
    status, out, err = cli(*words)
    assert status == 0, err
    return json.loads(out), err


def test_show_as_json(cli, finished, tmp_path):
    run, board = finished
    found, _ = parsed(cli, "show", run.path, "--json")
    assert found["state"] == "finished"
    assert found["leaderboard"] == json.loads((run.path / "leaderboard.json").read_text())
    assert found["best"]["trial"] == found["best_trial"] == board.winner
    assert found["best"]["valid"]["auc"] == pytest.approx(found["best"]["valid"]["auc"])
    assert len(found["ended"]) == 4
    assert (found["arms"], found["pareto"]) == (None, None)
    assert parsed(cli, "show", run.path, "--json", "--trial", "uniform")[0]["arm"] == "uniform"
    bundle, _ = parsed(cli, "show", run.best, "--json")
    assert bundle["manifest"]["provenance"]["trial"] == board.winner
    file, _ = parsed(cli, "show", run.trial(board.winner) / "architecture.json", "--json")
    assert file == bundle["architecture"] == found["best"]["architecture"]
    assert cli("show", run.path, "--json", "--picture", tmp_path / "x.png")[0] == 2
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "space.yaml").write_text(run.space.read_text())
    begun, _ = parsed(cli, "show", tmp_path / "begun", "--json")
    assert (begun["state"], begun["leaderboard"], begun["best"]) == ("interrupted", None, None)


def test_rank_as_json(cli, finished, tmp_path):
    run, _ = finished
    table = pl.DataFrame({"a": [0, 1] * 200, "b": list(range(400)), "label": [0, 1] * 200})
    table.write_parquet(tmp_path / "t.parquet")
    found, err = parsed(cli, "rank", tmp_path / "t.parquet", "--json", "--pairs", "1", "--out", tmp_path / "r.parquet")
    assert [row["feature"] for row in found["columns"]] == ["a", "b"]
    assert len(found["pairs"]) == 1
    assert found["selected"] is None
    assert {one["column"] for one in found["findings"]} >= {"b"}
    assert "r.parquet" in err  # what is said beside the data goes to stderr
    assert len(parsed(cli, "rank", tmp_path / "t.parquet", "--json", "--top", "1")[0]["columns"]) == 1
    fields, _ = parsed(cli, "rank", "--model", run.path, "--json")
    assert {"field", "logloss_rise"} <= set(fields["fields"][0])


def test_compare_as_json(cli, finished, tmp_path):
    run, board = finished
    found, _ = parsed(cli, "compare", run.path, run.path, "--json")
    assert found["first"] == found["second"]
    assert found["first"]["leaderboard"]["winner"] == board.winner
    assert found["differences"] == []
    table = pl.DataFrame({"a": [0, 1] * 200, "b": [0, 0, 1, 1] * 100, "label": [0, 1] * 200})
    table.write_parquet(tmp_path / "t.parquet")
    tables, _ = parsed(cli, "compare", tmp_path / "t.parquet", tmp_path / "t.parquet", "--json")
    assert tables["overlap"] == pytest.approx(1)
    assert [move["feature"] for move in tables["moves"]] == ["a", "b"]


def test_json_has_no_numbers_that_json_has_not(capsys):
    print_json({"a": [float("nan"), float("inf"), 1.5], "é": (1, None)})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {"a": [None, None, 1.5], "é": [1, None]}


def test_quiet_shows_warnings_only(capsys, cli, write_space):
    with Quiet() as shown:
        shown.tell("a note")
        shown.line("a line")
        shown.started("a-1", "a")
        shown.warn("a warning")
    assert capsys.readouterr() == ("", "warning: a warning\n")
    status, out, err = cli("search", write_space(), "--quiet", "--lines")
    assert (status, out) == (2, "")
    assert "--quiet, --lines and --verbose" in err


def test_verbose_shows_each_epoch_with_the_time(capsys):
    with Verbose() as shown:
        shown.tell("a note")
        shown.step("encode", 1, 2)
        shown.reported("a-1", {"valid_auc": 0.5})
        shown.warn("a warning")
    shown.tell("not any more")
    out, err = capsys.readouterr()
    lines = [re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ", "", line) for line in err.splitlines()]
    assert out == ""
    assert lines == [
        "INFO a note",
        "DEBUG encode: 1 of 2 ",
        "DEBUG trial a-1: {'valid_auc': 0.5}",
        "WARNING a warning",
    ]


def test_the_dashboard_is_of_a_ray_of_the_study_s_own(cli, write_space, tmp_path):
    words = ("search", write_space(), "--runs", tmp_path / "runs", "--dashboard", "--address", "10.0.0.1:6379")
    status, _, err = cli(*words)
    assert (status, err) == (2, "error: --dashboard is of a study's own Ray: leave out --address\n")
    assert not (tmp_path / "runs" / "tiny").exists()


def test_completion_knows_the_commands():
    environment = os.environ | {"_AUTOEMBED_COMPLETE": "complete_bash", "COMP_WORDS": "autoembed do", "COMP_CWORD": "1"}
    code = "import sys; sys.argv = ['autoembed']; from autoembed.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["doctor"]


def test_progress_is_by_the_objective(finished):
    run, _ = finished
    space = SearchSpace.model_validate(
        yaml.safe_load(run.space.read_text()) | {"objective": {"minimize": "valid.logloss"}}
    )
    seen = []
    bar = SimpleNamespace(trials=lambda done, total, metric, best: seen.append((done, total, metric.monitor, best)))
    request = SimpleNamespace(address=None, cpus=None, dashboard=False, again=False)
    engine._run_trials(run, space, None, request, bar, None)
    best = min(trial.result.valid["logloss"] for trial in run.trials())
    assert seen == [(4, 4, "valid_logloss", best)]
