"""A bundle as an MLflow model. MLflow runs this very file to load one, so nothing is unpickled."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import polars as pl
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature, set_model
from mlflow.types.schema import AnyType, ColSpec, Schema

from autoembed import __version__
from autoembed.auxiliary import prediction_columns
from autoembed.bundle import load_bundle


class BundleModel(mlflow.pyfunc.PythonModel):
    """Raw rows to predictions, such as click probabilities."""

    # Any: MLflow looks at these types, and warns of those that it does not know.
    def load_context(self, context: Any) -> None:
        self.bundle = load_bundle(context.artifacts["bundle"])

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        found = self.bundle.predict_all(model_input)
        return pd.DataFrame({name: found[name].to_numpy().astype(float) for name in found.columns})


def log_bundle(uri: str, run_id: str, bundle: Path, example: pl.DataFrame) -> str:
    """Logs a bundle as a model of a run; the model's URI."""
    signature = ModelSignature(
        # Columns may hold text in one table and numbers in the next: the vocabulary takes either.
        inputs=Schema([ColSpec(AnyType(), name) for name in example.columns]),
        outputs=Schema([ColSpec("double", name) for name in prediction_columns(load_bundle(bundle).schema)]),
    )
    with _tracking(uri), mlflow.start_run(run_id=run_id):
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(Path(__file__).absolute()),
            artifacts={"bundle": str(bundle)},
            signature=signature,
            input_example=example.to_pandas(),
            pip_requirements=[f"autoembed=={__version__}"],
        )
    return str(info.model_uri)


@contextmanager
def _tracking(uri: str) -> Iterator[None]:
    """Makes a store MLflow's current one for a while: MLflow also writes it to the environment, which is put back."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


def register(client: MlflowClient, name: str, uri: str, run_id: str, tags: Mapping[str, str]) -> str:
    """Makes a logged model a version of the registered model `name`; the version."""
    with _tracking(client.tracking_uri):  # a version's model is looked for in the current store, not in the client's
        return _register(client, name, uri, run_id, tags)


def _register(client: MlflowClient, name: str, uri: str, run_id: str, tags: Mapping[str, str]) -> str:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    version = client.create_model_version(
        name, uri, run_id, tags=dict(tags), await_creation_for=30, model_id=uri.removeprefix("models:/")
    )
    return str(version.version)


set_model(BundleModel())
