"""Rankings: clicks whose order within groups counts; pairs of rows in the loss, and metrics within groups first.

The loss of a batch is (1 - s) times the cross-entropy of its rows plus s times that of its pairs (`PairwiseLoss`),
where s is `train.pairwise_weight`. With s below 1 predictions are probabilities of a click. With s = 1 they are scores
that are compared within a group alone.
"""

from __future__ import annotations

from autoembed.clicks import AUC, GAUC, HITS, LOGLOSS, NDCG, BinaryClicks
from autoembed.errors import SpaceError
from autoembed.metrics import Metric, Metrics, group_auc_error
from autoembed.types import Array


class Rankings(BinaryClicks):
    """Labels 0 and 1 of rows that are ranked within groups: GAUC, NDCG@10, HR@10, and those of clicks.

    Whether anything was learnt is told by GAUC, which is 0.5 of a random order in any group; NDCG@10 and HR@10 of one
    depend on how many rows and clicks a group has.
    """

    name = "ranking"
    metrics: tuple[Metric, ...] = (GAUC, NDCG, HITS, AUC, LOGLOSS)
    grouped: tuple[Metric, ...] = ()
    objective = NDCG
    pairwise = 0.5

    def check_recipe(
        self, positive_weight: float, negative_sampling: float, pairwise_weight: float | None = None
    ) -> None:
        if pairwise_weight == 1 and positive_weight != 1:
            raise SpaceError(
                f"train.positive_weight counts clicks in the loss of rows, which train.pairwise_weight: 1 leaves out, "
                f"but got positive_weight={positive_weight:g}: set it to 1, or pairwise_weight below 1"
            )

    def evaluate(
        self, labels: Array, predictions: Array, weights: Array | None = None, groups: Array | None = None
    ) -> Metrics:
        found = super().evaluate(labels, predictions, weights, groups)
        return Metrics({one.name: found[one.name] for one in self.metrics if one.name in found.names})

    def error(self, value: float, labels: Array, weights: Array | None = None, groups: Array | None = None) -> float:
        if groups is None:
            raise ValueError("rows of data.task: ranking must have groups, but got None")
        return group_auc_error(value, labels, groups, weights)
