from pathlib import Path

import pytest
import yaml

from autoembed.budget import Limit
from autoembed.errors import SpaceError, printable
from autoembed.space import Range, SearchSpace

SPACES = sorted((Path(__file__).parents[1] / "search_spaces").glob("*.yaml"))
SPACE = {
    "data": {"path": "x.csv", "label": "y"},
    "embedding": {"dim": {"choice": [8, 16]}},
    "stages": [{"method": "dnis", "l1": {"log": [1.0e-6, 1.0e-4]}}],
    "baselines": ["uniform", {"method": "frequency", "temperature": {"uniform": [0.1, 0.5]}}],
    "backbone": {"name": "deepfm", "hidden": {"choice": [[32], [64, 32]]}},
    "train": {"lr": {"log": [1.0e-4, 1.0e-2]}},
    "budget": {"trials": 4, "width": 2},
}


def read(tmp_path, **changes):
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(SPACE | changes))
    return SearchSpace.read(tmp_path / "s.yaml")


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_every_shipped_space_is_valid(path):
    space = SearchSpace.read(path)
    if path.stem.startswith("bars_"):
        assert all(arm.startswith("uniform@") and not space.ranges(arm) for arm in space.arms())
    elif path.stem.startswith("frontier_"):
        arms = ("sensitivity", "uniform", "uniform-2", "frequency", "magnitude", "random", "dnis")
        assert space.arms() == arms
        assert not any(space.ranges(arm) for arm in arms)
    elif path.stem.endswith("_pairs"):
        assert "optinter" in space.arms()[0]
    elif path.stem.endswith("_clusters"):
        assert space.arms()[:2] == ("ihas", "one_cluster")
    elif path.stem.endswith("_composed"):
        assert space.arms()[:2] == ("dnis+optinter+ihas", "dnis+optinter")
    elif path.stem.endswith("auto"):
        assert space.arms()[0] == "auto"
        assert space.objective.cost == "bytes"
    else:
        assert space.arms()[0] in ("sensitivity", "dnis")
        assert space.arms()[1] == "uniform"


def test_arms_ranges_and_configs(tmp_path):
    space = read(tmp_path)
    assert space.arms() == ("dnis", "uniform", "frequency")
    assert set(space.ranges("dnis")) == {"embedding.dim", "stages.0.l1", "backbone.hidden", "train.lr"}
    assert "stages.0.temperature" in space.ranges("frequency")
    assert space.ranges("dnis")["train.lr"] == Range(kind="log", values=(1e-4, 1e-2))
    values = {"embedding.dim": 16, "stages.0.l1": 1e-5, "backbone.hidden": [64, 32], "train.lr": 1e-3}
    config = space.config("dnis", values, seed=3)
    assert (config.embedding.dim, config.train.lr, config.seed, config.limit.width) == (16, 1e-3, 3, 2)
    assert config.backbone == {"name": "deepfm", "hidden": [64, 32]}


def test_every_trial_keeps_the_best_epoch_by_the_objective(tmp_path):
    values = {"embedding.dim": 8, "backbone.hidden": [32], "train.lr": 1e-3}
    for objective, monitor in (
        ({}, "valid_auc"),
        ({"minimize": "valid.logloss"}, "valid_logloss"),
        ({"minimize": ["valid.logloss", "bytes"]}, "valid_logloss"),
        ({"maximize": "valid.auc", "minimize": "bytes"}, "valid_auc"),
    ):
        assert read(tmp_path, objective=objective).config("uniform", values).monitor == monitor
    with pytest.raises(SpaceError, match=r"train\.monitor"):
        read(tmp_path, train={"monitor": "valid_auc"})


def test_bytes_of_the_embeddings_reach_the_trial_as_a_number_and_as_a_range(tmp_path):
    values = {"embedding.dim": 8, "backbone.hidden": [32], "train.lr": 1e-3, "stages.0.l1": 1e-5}
    space = read(tmp_path, budget={"embedding_bytes": 5000})
    assert space.config("uniform", values).limit == Limit(embedding_bytes=5000)
    space = read(tmp_path, budget={"embedding_bytes": {"log_int": [1000, 8000]}, "bytes": 90000})
    limit = space.config("dnis", {**values, "limit.embedding_bytes": 3000}).limit
    assert limit == Limit(embedding_bytes=3000, bytes=90000)
    with pytest.raises(SpaceError, match=r"limit\.embedding_bytes"):
        read(tmp_path, budget={"embedding_bytes": 0})


def test_every_arm_is_run_under_every_variant(tmp_path):
    variants = {"big": {"embedding": {"blocks": 2}, "train": {"lr": 0.1}}, "cross": {"backbone": {"name": "dcn"}}}
    space = read(tmp_path, variants=variants)
    arms = ("dnis", "uniform", "frequency")
    assert space.arms() == (*(f"{arm}@big" for arm in arms), *(f"{arm}@cross" for arm in arms))
    big = space.config("uniform@big", {"embedding.dim": 8, "backbone.hidden": [32]})
    assert (big.embedding.dim, big.embedding.blocks, big.train.lr) == (8, 2, 0.1)
    assert set(space.ranges("frequency@cross")) == {"embedding.dim", "stages.0.temperature", "train.lr"}
    assert space.template("frequency@cross")["backbone"] == {"name": "dcn"}
    with pytest.raises(SpaceError, match=r"unknown arm 'dnis'.*dnis@big"):
        space.template("dnis")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"stagez": []}, "unknown key 'stagez': must be one of .*stages"),
        ({"stages": [{"method": "dnsi"}]}, "unknown method 'dnsi'.*dnis"),
        ({"stages": [{"method": "dnis", "l3": 1}]}, "stage dnis: l3.*options"),
        ({"stages": [{}]}, "must name its method"),
        ({"stages": []}, "stages"),
        ({"baselines": ["mystery"]}, "unknown method 'mystery'"),
        ({"backbone": "deepfn"}, "unknown backbone 'deepfn'.*deepfm"),
        ({"backbone": {"choice": ["deepfm", "nope"]}}, "unknown backbone 'nope'"),
        ({"train": {"lr": {"log": [0, 1]}}}, "train.lr: log must start above 0"),
        ({"train": {"lr": {"log": [1, 0.1]}}}, "two rising numbers"),
        ({"train": {"lr": {"log": ["1e-4", 1]}}}, "two rising numbers"),
        ({"train": {"batch_size": {"int": [1.5, 3]}}}, "two rising whole numbers"),
        ({"train": {"epoks": 3}}, "train.epoks"),
        ({"train": {"lr": -1}}, "train.lr"),
        ({"budget": {"trials": 0}}, "budget.trials"),
        (
            {"objective": {"maximize": "valid.auc", "minimize": "valid.logloss"}},
            "must have one metric, .* and at most one cost",
        ),
        ({"data": {"lable": "y"}}, "lable"),
        ({"variants": {"a": {"backbone": "deepfn"}}}, "unknown backbone 'deepfn'"),
        ({"variants": {"a": {"stages": []}}}, "variants.a.stages"),
        ({"variants": {"a/b": {}}}, "variants.a/b"),
    ],
)
def test_a_broken_space_is_one_clear_line_that_names_the_file(tmp_path, changes, line):
    with pytest.raises(SpaceError, match=line) as raised:
        read(tmp_path, **changes)
    assert "s.yaml" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_files_that_are_no_yaml_are_named(tmp_path):
    with pytest.raises(SpaceError, match="cannot read the search space"):
        SearchSpace.read(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1,\nb: {")
    with pytest.raises(SpaceError, match="not valid YAML"):
        SearchSpace.read(tmp_path / "bad.yaml")
    (tmp_path / "tag.yaml").write_text("!!python/object/apply:os.system ['true']")
    with pytest.raises(SpaceError, match="not valid YAML"):
        SearchSpace.read(tmp_path / "tag.yaml")


def test_an_error_steers_no_terminal_and_has_an_end():
    assert printable("no column 'a\x1b[31m'\nnext") == "no column 'a\\x1b[31m'\nnext"
    assert printable("x" * 20_000) == "x" * 2000 + "..."
