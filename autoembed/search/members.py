"""An ensemble of what a search has found: its architecture, and the weights that it starts from."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch

from autoembed.architecture import Architecture
from autoembed.errors import SpaceError
from autoembed.nn.backbones.base import Backbone
from autoembed.nn.ensemble import SharedMembers
from autoembed.nn.model import CTRModel, Model, build_model, members
from autoembed.plans import Ensemble, Router
from autoembed.search.supernet import Answer, Supernet


def spread(architecture: Architecture, ensemble: Ensemble) -> Architecture:
    """The ensemble of which each member is an architecture; itself with one member. SpaceError if it has clusters."""
    if ensemble.members == 1:
        return architecture
    if architecture.clusters:
        raise SpaceError(f"an ensemble has no clusters, but the search found {len(architecture.clusters)} of them")
    if ensemble.share != "none":
        return architecture.replace(ensemble=ensemble)
    if architecture.storage.kind == "shared":
        raise SpaceError("members with tables of their own need separate tables: set ensemble.share to tables or all")
    return architecture.replace(clusters=(architecture,) * ensemble.members, router=Router(kind="all"))


def single(architecture: Architecture) -> Architecture:
    """One member of an ensemble, as the search has found it; any other architecture itself."""
    if architecture.router and architecture.router.kind == "all":
        return architecture.clusters[0]
    return architecture.replace(ensemble=None)


def answer(net: Supernet, limit: int | None, ensemble: Ensemble) -> Answer:
    """What a net answers within `limit` bytes of embeddings, as an ensemble whose members share these or split them."""
    own = limit if limit is None or ensemble.share != "none" else limit // ensemble.members
    found = net.answer(own)
    return replace(found, architecture=spread(found.architecture, ensemble))


@torch.no_grad()
def compact(net: Supernet, architecture: Architecture, ensemble: Ensemble) -> Model:
    """The compact model of what `answer` gave, with the net's weights.

    An ensemble takes the tables, and the backbone that all members share. Backbones of their own are fresh: copies
    would stay too much alike.
    """
    if ensemble.members == 1:
        return net.compact(architecture)
    one = net.compact(single(architecture))
    assert isinstance(one, CTRModel)
    model = build_model(net.schema, architecture).to(net.weight.device)
    for member in members(model):
        for own, theirs in zip(member.tables(), one.tables(), strict=True):
            own.load_state_dict(theirs.state_dict())
        if isinstance(member.backbone, SharedMembers):
            member.backbone.inherit(cast(Backbone, one.backbone))
    return model
