"""What the formats of other libraries have no form for."""

import dataclasses

import pytest

from autoembed.architecture import Architecture
from autoembed.data.schema import FeatureSchema, Multi
from autoembed.errors import BundleError
from autoembed.export.formats import export_bundle
from autoembed.nn.model import build_model


@pytest.mark.parametrize("format", ["fuxictr", "torchrec"])
@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"multi": Multi(length=2)}, "multi-valued columns"),
        ({"shares": "site", "cardinality": 41}, "columns that share a table"),
    ],
)
def test_columns_of_other_kinds_are_refused(drawn, tmp_path, format, change, what):
    bundle = drawn("dnn", hidden=[8])
    schema = FeatureSchema(
        fields=(*bundle.schema.fields[:3], bundle.schema.fields[3].model_copy(update=change)),
        label="label",
    )
    counts = [bundle.vocabulary.counts(name) for name in schema.names]
    backbone = dict(bundle.architecture.backbone)
    architecture = Architecture.full(schema, counts, dim=4, blocks=1, backbone=backbone)
    model = build_model(schema, architecture)
    other = dataclasses.replace(bundle, schema=schema, architecture=architecture, model=model)
    with pytest.raises(BundleError, match=f"no form for the {what}"):
        export_bundle(other, tmp_path / "out", format)
