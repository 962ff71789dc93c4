"""Every backbone as a program of plain operations: the same numbers in NumPy and in ONNX Runtime."""

import io
import json

import numpy as np
import pytest
import torch

from autoembed.architecture import Architecture
from autoembed.card import sample_ids
from autoembed.data.schema import FeatureSchema, Field, Multi
from autoembed.export.numpy_scorer import graph_of
from autoembed.export.program import core_of, program_of_model
from autoembed.export.scorer import Scorer, _stored
from autoembed.nn.backbones import base
from autoembed.nn.model import build_model

COUNTS = [np.array(c) for c in ([0, 90, 9, 8, 1], [3, 60, 5], [0, 50, 2, 1], [0, 44, 7])]
SCHEMA = FeatureSchema(
    fields=tuple(
        Field(
            name=n,
            cardinality=len(c),
            multi=Multi(length=3) if n == "c" else None,
            interpolation="piecewise" if n == "d" else None,
        )
        for n, c in zip("abcd", COUNTS, strict=True)
    ),
    label="y",
)
IDS = sample_ids(SCHEMA, 100).astype(np.int64)
QUICK = ("autoint", "finalmlp")


def model_of(name):
    by = ("mean", "sum", "max")[base.names().index(name) % 3]
    architecture = Architecture.full(
        SCHEMA, COUNTS, dim=1 if name == "lr" else 4, blocks=2, cut="equal", backbone={"name": name}, pool=by
    )
    torch.manual_seed(0)
    model = build_model(SCHEMA, architecture).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


NAMES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in base.names()]


@pytest.mark.parametrize("name", NAMES)
def test_every_backbone_runs_in_numpy(name):
    model = model_of(name)
    graph, weights = graph_of(core_of(program_of_model(model, IDS.shape[1])))
    stored = {key: _stored(array, graph["weights"][key]) for key, array in weights.items()}
    found = Scorer(json.loads(json.dumps(graph)), stored, []).predict_ids(IDS)
    with torch.no_grad():
        np.testing.assert_allclose(found, torch.sigmoid(model(torch.from_numpy(IDS))).numpy(), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", base.names())
def test_every_backbone_runs_in_onnx_runtime(name):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the package onnxruntime")
    from autoembed.export.onnx_graph import graph_of_ids

    model, stream = model_of(name), io.BytesIO()
    stream.write(graph_of_ids(program_of_model(model, IDS.shape[1])).SerializeToString())
    (found,) = onnxruntime.InferenceSession(stream.getvalue()).run(None, {"ids": IDS})
    with torch.no_grad():
        np.testing.assert_allclose(found, torch.sigmoid(model(torch.from_numpy(IDS))).numpy(), atol=1e-5)
