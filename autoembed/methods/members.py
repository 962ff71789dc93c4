"""An ensemble of what a search has found: its architecture, and the weights that it starts from."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch

from autoembed.architecture import Architecture
from autoembed.errors import SpaceError
from autoembed.methods import tower
from autoembed.methods.supernet import Answer, Supernet
from autoembed.nn.backbones.base import Backbone
from autoembed.nn.ensemble import SharedMembers
from autoembed.nn.model import CTRModel, Model, build_model, members
from autoembed.plans import Ensemble, RouterPlan

Ask = tower.Ask


def spread(architecture: Architecture, ensemble: Ensemble) -> Architecture:
    """The ensemble of which each member is an architecture; itself with one member. SpaceError if it has clusters."""
    if ensemble.members == 1:
        return architecture
    if architecture.clusters:
        raise SpaceError(f"an ensemble has no clusters, but the search found {len(architecture.clusters)} of them")
    if ensemble.share != "none":
        return architecture.replace(ensemble=ensemble)
    if architecture.storage.kind not in ("mixed", "projected", "quotient_remainder"):
        raise SpaceError("members with tables of their own need separate tables: set ensemble.share to tables or all")
    return architecture.replace(clusters=(architecture,) * ensemble.members, router=RouterPlan(kind="all"))


def single(architecture: Architecture) -> Architecture:
    """One member of an ensemble, as the search has found it; any other architecture itself."""
    if architecture.router and architecture.router.kind == "all":
        return architecture.clusters[0]
    return architecture if architecture.ensemble is None else architecture.replace(ensemble=None)


def spreading(ask: Ask, ensemble: Ensemble) -> Ask:
    """Asks for an ensemble whose members share what a limit leaves, or split it where they share no tables."""
    if ensemble.members == 1:
        return ask

    def asked(limit: int | None) -> Answer:
        found = ask(limit if limit is None or ensemble.share != "none" else limit // ensemble.members)
        return replace(found, architecture=spread(found.architecture, ensemble))

    return asked


@torch.no_grad()
def compact(net: Supernet, architecture: Architecture) -> Model:
    """The compact model of what `spreading` gave, with the net's weights.

    An ensemble of one architecture takes the tables, the backbone that all members share and the towers of auxiliary
    labels. Backbones of their own are fresh: copies would stay too much alike.
    """
    if net.makes_clusters or single(architecture) is architecture:
        return tower.compact(net, architecture)
    one = tower.compact(net, single(architecture))
    assert isinstance(one, CTRModel)
    model = build_model(net.schema, architecture).to(net.weight.device)
    for member in members(model):
        for own, theirs in zip(member.tables(), one.tables(), strict=True):
            own.load_state_dict(theirs.state_dict())
        if isinstance(member.backbone, SharedMembers):
            member.backbone.inherit(cast(Backbone, one.backbone))
        if member.heads is not None and one.heads is not None:
            member.heads.load_state_dict(one.heads.state_dict())
    return model
