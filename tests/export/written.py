"""A bundle of a model that no search has made."""

from autoembed.bundle import load_bundle, write_bundle
from autoembed.nn.model import pack, start_rounding


def written(folder, schema, vocabulary, model):
    """The bundle of a model as it is, read again from its folder."""
    start_rounding(model)
    write_bundle(
        folder,
        schema=schema,
        vocabulary=vocabulary,
        architecture=model.architecture,
        model=pack(model, schema).eval(),
        data={"label": "label"},
        metrics={},
        provenance={},
    )
    return load_bundle(folder)
