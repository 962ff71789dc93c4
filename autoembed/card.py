"""A bundle's model card, and the sample of predictions by which a bundle is verified."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from pydantic import JsonValue

from autoembed.architecture import Architecture
from autoembed.data.knots import ONE, SPAN
from autoembed.data.schema import PAD, FeatureSchema
from autoembed.data.vocabulary import Vocabulary
from autoembed.metrics import Metrics
from autoembed.task import told
from autoembed.types import Array

SAMPLE_ROWS = 64


def sample_ids(schema: FeatureSchema, rows: int = SAMPLE_ROWS) -> Array:
    """Ids int32 [rows, V], drawn evenly from each field's; equal for equal schemas.

    Rows have from one value of a multi-valued field to as many as it may hold, and numbers between any two knots.
    """
    rng = np.random.default_rng(0)
    parts = []
    for field in schema.fields:
        ids = rng.integers(0, field.cardinality, rows if field.multi is None else (rows, field.length))
        if field.interpolation:
            share = rng.integers(1, ONE, rows)
            other = rng.integers(0, field.cardinality, rows)
            ids = np.stack([ids + share * SPAN, other + (ONE - share) * SPAN], axis=1)
        if field.multi is not None:
            ids[np.arange(field.length) >= rng.integers(1, field.length + 1, (rows, 1))] = PAD
        parts.append(ids.reshape(rows, -1))
    return np.concatenate(parts, axis=1).astype(np.int32)


def card(
    schema: FeatureSchema,
    vocabulary: Vocabulary,
    architecture: Architecture,
    metrics: Mapping[str, JsonValue],
    provenance: Mapping[str, JsonValue],
) -> str:
    """The model card as Markdown: what it predicts from what, how well, at what cost, and how to use and refresh it."""
    cost, clicks = architecture.cost, schema.ratings is None and schema.classes is None
    origin = [f"{name} `{provenance[name]}`" for name in ("study", "trial", "fingerprint") if provenance.get(name)]
    further = ", ".join(f"`{label}`" for label in schema.auxiliary_labels)
    lines = [
        f"# {'Click model' if clicks else 'Model'} for `{schema.label}`",
        "",
        f"A {architecture.backbone['name']} that {_predicts(schema, provenance.get('train'))}",
        "",
        *([f"Beside it, it predicts the probabilities of {further}, from the same embeddings.", ""] if further else []),
        "## Quality",
        "",
        *(f"- {split}: {_metrics(value)}" for split, value in metrics.items()),
        *([] if metrics else ["Not recorded."]),
        "",
        "Metrics on valid are optimistic: valid also chose the model.",
        "",
        "## Cost",
        "",
        "Not recorded."
        if cost is None
        else f"{cost.bytes:,} bytes in memory, {cost.embedding_bytes:,} of them embeddings; "
        f"{cost.embedding_parameters:,} embedding parameters and {cost.dense_parameters:,} others.",
        "",
        "## Data",
        "",
        *([f"From {', '.join(origin)} (the fingerprint names the data).", ""] if origin else []),
        f"{len(vocabulary.columns)} columns. Values that train did not have score as unknown.",
        "",
        "| column | kind | ids | most frequent id, share of train | missing in train |",
        "|---|---|---|---|---|",
        *(_column(field.name, field.kind, vocabulary) for field in schema.fields if not field.derived),
        "",
        "The licence of the data is not known to autoembed: add it here before you share the model.",
        "",
        "## Use",
        "",
        "```",
        "autoembed verify .                                       # hashes, schema, and a stored sample of predictions",
        "autoembed predict . TABLE --out scores.parquet",
        "autoembed retrain . --data NEW_TABLE --out NEW_BUNDLE --warm",
        "autoembed export . FOLDER --format onnx",
        "```",
        "",
        "## Limits",
        "",
        "It knows rows like those it was trained on. `autoembed predict` tells which share of each column's values is "
        "unknown or missing; retrain where these grow. Predictions for groups of people were not examined.",
        "",
    ]
    return "\n".join(lines)


def _predicts(schema: FeatureSchema, train: JsonValue) -> str:
    """What predictions are, from the recipe of the training if it is known."""
    if schema.ratings is not None:
        return f"predicts `{schema.label}` for each row, in its own units."
    if schema.classes is not None:
        names = ", ".join(schema.classes.names)
        return f"predicts the probability of each class of `{schema.label}` ({names}) for each row."
    if not schema.ranking:
        return f"predicts the probability of `{schema.label}` for each row."
    if isinstance(train, dict) and train.get("pairwise_weight") == 1:
        return (
            f"scores rows, so that those of one `{schema.group}` can be ranked by `{schema.label}`. Scores are no "
            f"probabilities, and those of different `{schema.group}` do not compare, nor does "
            f"{schema.task.criterion.title} mean anything."
        )
    return (
        f"predicts the probability of `{schema.label}` for each row, trained to rank the rows of one `{schema.group}`."
    )


def _metrics(value: JsonValue) -> str:
    if isinstance(value, dict):
        numbers = {name: float(number) for name, number in value.items() if isinstance(number, int | float)}
        return told(Metrics(numbers))
    return str(value)


def _column(name: str, kind: str, vocabulary: Vocabulary) -> str:
    counts, missing = vocabulary.counts(name), vocabulary.missing(name)
    total = max(int(counts.sum()), 1)
    most = counts[1:].max() / total if len(counts) > 1 else 0.0
    shown = name.replace("|", "\\|")
    return f"| {shown} | {kind} | {len(counts):,} | {most:.1%} | {counts[missing] / total if missing else 0:.1%} |"
