"""The published JSON Schema of search spaces knows what the package reads, and refuses what it refuses."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from autoembed.errors import SpaceError
from autoembed.space import SearchSpace
from autoembed.space.json_schema import json_schema

ROOT = Path(__file__).resolve().parents[1]
BASE = {"data": {"planted": {}}, "stages": [{"method": "dnis"}]}


@pytest.fixture(scope="module")
def validator():
    return jsonschema.Draft202012Validator(json_schema())


def test_the_published_one_is_that_of_the_source():
    published = json.loads((ROOT / "docs" / "search-space.schema.json").read_text())
    assert published == json_schema(), "run: python tests/reference.py"
    jsonschema.Draft202012Validator.check_schema(published)


@pytest.mark.parametrize("path", sorted((ROOT / "search_spaces").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_spaces_are_valid(validator, path):
    assert not list(validator.iter_errors(yaml.safe_load(path.read_text())))


@pytest.mark.parametrize(
    "more",
    [
        {"train": {"lr": {"log": [1e-4, 1e-2]}, "distill": {"teacher": "search"}}},
        {"backbone": {"choice": ["dcn", "deepfm"]}},
        {"backbone": {"name": "autoint", "heads": {"int": [1, 4]}}, "scheduler": "none"},
        {"baselines": ["uniform", {"method": "magnitude", "bits": 4}, [{"method": "dnis", "width": 2}]]},
        {"stages": {"choice": [[{"method": "dnis"}], [{"method": "ihas"}]]}, "final": {"seeds": 3}},
        {"data": {"planted": {}, "multi": {"genres": "|", "items": {"max_length": 9, "shared": "item"}}}},
        {"budget": {"trials": 2, "bytes": {"log_int": [1000, 90000]}}, "tower": {"bits": {"choice": [8, 32]}}},
        {"variants": {"few": {"embedding": {"bits": 4}}}, "objective": {"minimize": ["valid.logloss", "bytes"]}},
    ],
)
def test_what_is_read_is_valid(validator, more):
    space = {**BASE, **more}
    assert not list(validator.iter_errors(space))
    if "multi" not in space["data"]:
        SearchSpace.parse(space)


@pytest.mark.parametrize(
    "more",
    [
        {"trian": {}},
        {"train": {"learning_rate": 1}},
        {"train": {"lr": {"loguniform": [1, 2]}}},
        {"stages": [{"method": "dnsi"}]},
        {"stages": [{"method": "dnis", "l3": 1}]},
        {"backbone": "deepfn"},
        {"embedding": {"bits": 5}},
        {"budget": {"trails": 3}},
        {"data": {"planted": {}, "label_column": "y"}},
        {"objective": {"maximise": "valid.auc"}},
    ],
)
def test_what_is_refused_is_not_valid(validator, more):
    space = {**BASE, **more}
    assert list(validator.iter_errors(space))
    with pytest.raises(SpaceError):
        SearchSpace.parse(space)
