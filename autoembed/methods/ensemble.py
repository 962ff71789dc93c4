"""The baseline that spends the budget on an ensemble: `members` models on all rows, the mean of whose logits counts.

Each is pruned by magnitude to its share of the budget and trained from its own fresh weights. It tells whether clusters
bring more than several models would (Lakshminarayanan et al., NeurIPS 2017).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from autoembed.architecture import Architecture
from autoembed.methods import magnitude, supernet
from autoembed.nn.model import Model, RoutedModel
from autoembed.plans import RouterPlan


class Config(magnitude.Config):
    """`members` is the number of models."""

    method: str = "ensemble"
    members: int = Field(default=2, ge=2, le=64)
    retrain: Literal["fresh"] = "fresh"


class Supernet(magnitude.Supernet):
    """One warm start; all members keep the same dims."""

    makes_clusters = True

    def answer(self, limit: int | None) -> supernet.Answer:
        members = self.config.members
        one = super().answer(None if limit is None else limit // members)
        member = one.architecture
        whole = member.replace(clusters=(member,) * members, router=RouterPlan(kind="all"))
        return supernet.Answer(architecture=whole, notes=one.notes)

    def compact(self, architecture: Architecture) -> Model:
        """Every member with the weights of the warm start."""
        model = RoutedModel(self.schema, architecture).to(self.weight.device)
        for part, member in zip(model.models, architecture.clusters, strict=True):
            part.load_state_dict(self.cut(member, self.gates()).state_dict())
        return model
