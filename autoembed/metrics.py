"""How good predicted click probabilities are."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from sklearn.metrics import log_loss, roc_auc_score

from autoembed.architecture import Array
from autoembed.errors import DataError


class Metrics(BaseModel):
    """Area under the ROC curve, and mean negative log likelihood in nats."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    auc: float
    logloss: float


def evaluate(labels: Array, probabilities: Array) -> Metrics:
    """Metrics of float [N] probabilities for 0/1 labels [N]; DataError if only one class is there."""
    if labels.min() == labels.max():
        raise DataError(f"AUC needs both classes, but all {len(labels)} labels are {labels[0]:g}")
    return Metrics(
        auc=float(roc_auc_score(labels, probabilities)), logloss=float(log_loss(labels, probabilities, labels=[0, 1]))
    )
