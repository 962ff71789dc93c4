import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from autoembed.architecture import Architecture
from autoembed.data.schema import FeatureSchema, Field
from autoembed.errors import BundleError, SpaceError
from autoembed.nn.model import CTRModel, cost_of, measure
from autoembed.plans import Block, FieldPlan

BACKBONE = {"name": "deepfm", "hidden": [8], "dropout": 0.0}
DOCS = Path(__file__).parents[1] / "docs"


def schema(*cardinalities):
    fields = tuple(Field(name=f"f{number}", cardinality=size) for number, size in enumerate(cardinalities))
    return FeatureSchema(fields=fields, label="label")


def full(counts, **options):
    counts = [np.array(count) for count in counts]
    options = {"dim": 4, "blocks": 3, "backbone": BACKBONE} | options
    return Architecture.full(schema(*map(len, counts)), counts, **options)


COUNTS = [[0, 100, 50, 9, 8, 7, 1, 1], [3, 100, 1], [0, 60, 1, 1, 1]]


def test_blocks_cut_values_of_all_fields_at_the_same_counts():
    architecture = full(COUNTS, cut="equal")
    # 13 values by falling count: 100 100 60 50 | 9 8 7 1.. -> edges at ranks 4 and 8: counts 9 and 1.
    assert [[b.stop for b in f.blocks] for f in architecture.fields] == [[3, 6, 8], [2, 3], [2, 5]]
    assert architecture.block_levels().tolist() == [0, 1, 2, 0, 2, 0, 2]
    for count, field in zip(COUNTS, architecture.fields, strict=True):
        for a, b in zip(field.blocks, field.blocks[1:], strict=False):
            assert min(count[1 : a.stop]) > max(count[a.stop : b.stop])


def test_geometric_blocks_grow_towards_the_rare_end():
    counts = [np.concatenate([[0], np.arange(1000, 0, -1)])]
    rows = Architecture.full(schema(1001), counts, dim=2, blocks=3, backbone=BACKBONE).block_rows()
    # Ranks 1000^(1/3) = 10 and 1000^(2/3) = 100; id 0 goes with the first block.
    assert rows.tolist() == [10 + 1, 90, 900]


def test_equal_counts_share_a_block():
    assert full([[0, 5, 5, 5, 5, 5, 5]], blocks=4).block_rows().tolist() == [7]


def test_mask_round_trip_and_a_field_that_keeps_nothing_goes():
    architecture = full(COUNTS)
    mask = architecture.mask() & False
    mask[0, [1, 3]] = True
    narrow = architecture.with_mask(mask)
    assert narrow.names == ("f0",)
    assert narrow.fields[0].blocks[0].dims == (1, 3)
    assert narrow.narrows(architecture)
    assert not architecture.narrows(narrow)
    with pytest.raises(SpaceError, match="at least one dim"):
        architecture.with_mask(mask & False)


def test_json_round_trip_and_the_published_schema(tmp_path):
    architecture = full(COUNTS)
    architecture = architecture.replace(cost=cost_of(architecture))
    architecture.write(tmp_path / "a.json")
    assert Architecture.read(tmp_path / "a.json") == architecture
    published = json.loads((DOCS / "architecture.schema.json").read_text())
    assert published == Architecture.model_json_schema()
    jsonschema.validate(json.loads((tmp_path / "a.json").read_text()), published)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda a: a["fields"][0]["blocks"][0].update(dims=[3, 1]), "must be rising numbers"),
        (lambda a: a["fields"][0]["blocks"][0].update(dims=[9]), "in 0..3"),
        (lambda a: a["fields"][0].update(cardinality=99), "must rise to 99"),
        (lambda a: a.update(version=7), "version"),
        (lambda a: a.update(oops=1), "oops"),
    ],
)
def test_a_broken_file_is_one_clear_line(tmp_path, change, line):
    node = json.loads(full(COUNTS).model_dump_json())
    change(node)
    (tmp_path / "a.json").write_text(json.dumps(node))
    with pytest.raises(BundleError, match=line) as raised:
        Architecture.read(tmp_path / "a.json")
    assert "\n" not in str(raised.value)


def test_cost_equals_the_tensors_that_the_model_holds():
    architecture = full(COUNTS)
    rng = np.random.default_rng(0)
    for _ in range(5):
        narrow = architecture.with_mask(rng.random(architecture.mask().shape) < 0.4)
        model = CTRModel(schema(*map(len, COUNTS)), narrow)
        cost = cost_of(narrow)
        assert cost == measure(model)
        assert cost.embedding_parameters == narrow.embedding_parameters(first_order=True)
        stored = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
        assert cost.bytes == stored
        assert cost.parameters == sum(p.numel() for p in model.parameters())


def test_plans_must_cover_their_ids():
    with pytest.raises(ValueError, match="must rise to 5"):
        FieldPlan(name="f", cardinality=5, blocks=(Block(stop=3, level=0, dims=(0,)),))
