"""A refresh of a bundle in MLflow: a run beside the study's trials, and a version of the registered model."""

from __future__ import annotations

import time
from collections.abc import Mapping

from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from autoembed.errors import StudyError
from autoembed.refreshing import Refreshed
from autoembed.study.run_dir import RunDir
from autoembed.study.trackers.mlflow.mirror import CHAMPION, REFRESH, model_name
from autoembed.study.trackers.mlflow.model import log_bundle, register


def log_refresh(run: RunDir, done: Refreshed, facts: Mapping[str, object]) -> str:
    """Logs a refresh as a nested run of its study; a sentence on what became of the champion.

    A bundle that was written is a new version of the study's registered model, and the alias `champion` moves to it if
    it is no worse on the tail of the log. StudyError if the study is not in MLflow.
    """
    known = run.read_json("mlflow.json")
    if not known or "tracking_uri" not in known:
        raise StudyError(f"{run.path} is not in MLflow: `autoembed sync {run.path}` writes it")
    uri, client = known["tracking_uri"], MlflowClient(tracking_uri=known["tracking_uri"])
    number = str(done.bundle.manifest.provenance.get("refreshes", 0)) if done.kept else "refused"
    tags = {"mlflow.parentRunId": known["parent"], REFRESH: number, "autoembed.bundle": str(done.bundle.path)}
    run_id = client.create_run(known["experiment"], run_name=f"refresh {number}", tags=tags).info.run_id
    status = "FAILED"
    try:
        _facts(client, run_id, done, facts)
        line = "the champion stays"
        if done.kept:
            version = _version(client, uri, run, run_id, done, number)
            if done.no_worse:
                client.set_registered_model_alias(model_name(run), CHAMPION, version)
                line = f"version {version} of {model_name(run)} is the champion now"
            else:
                line = f"version {version} of {model_name(run)} is worse on the tail: {line}"
        status = "FINISHED"
    finally:
        client.set_terminated(run_id, status=status)
    return f"MLflow has the run refresh {number}: {line}"


def _facts(client: MlflowClient, run_id: str, done: Refreshed, facts: Mapping[str, object]) -> None:
    now = int(time.time() * 1000)
    labels = {"": (done.before, done.after)} | {f".{label}": both for label, both in done.further.items()}
    values = {
        f"tail/{name}{label}_{when}": value
        for label, both in labels.items()
        for when, metrics in zip(("before", "after"), both, strict=True)
        for name, value in metrics.items()
    }
    changed = {name: float(done.values[name].sum()) for name in ("new", "gone")}
    values |= {"rows": float(done.rows), "values/new": changed["new"], "values/gone": changed["gone"]}
    shares = done.coverage.select("unknown", "missing").max()
    values |= {"drift/largest_unknown": shares["unknown"][0], "drift/largest_missing": shares["missing"][0]}
    metrics = [Metric(name, float(value), now, 0) for name, value in values.items()]
    client.log_batch(run_id, metrics=metrics, params=[Param(name, str(value)[:6000]) for name, value in facts.items()])
    client.log_text(run_id, done.coverage.write_csv(), "coverage.csv")
    client.log_text(run_id, done.values.write_csv(), "values.csv")
    found = "".join(f"- {line}\n" for line in done.drift) or "no column has drifted far\n"
    client.set_tag(run_id, "mlflow.note.content", f"Drift against what the model was trained on:\n\n{found}")


def _version(client: MlflowClient, uri: str, run: RunDir, run_id: str, done: Refreshed, number: str) -> str:
    model = log_bundle(uri, run_id, done.bundle.path, done.bundle.example())
    return register(client, model_name(run), model, run_id, {REFRESH: number})
