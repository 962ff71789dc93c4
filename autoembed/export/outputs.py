"""What an exported model calls its predictions."""

from __future__ import annotations

from autoembed.data.schema import FeatureSchema


def output_name(schema: FeatureSchema) -> str:
    """The name of what is predicted, which an ONNX model's output has as well."""
    if schema.classes is not None:
        return "chances"
    return "click" if schema.ratings is None else "rating"
