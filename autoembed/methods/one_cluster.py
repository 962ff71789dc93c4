"""The baseline that keeps all rows in one cluster: what iHAS's gates find, without its routing."""

from __future__ import annotations

from typing import Literal

from autoembed.methods import ihas


class Config(ihas.Config):
    """iHAS's options, with one cluster."""

    method: str = "one_cluster"
    clusters: Literal[1] = 1


class Supernet(ihas.Supernet):
    """The same search; one architecture, no router."""

    makes_clusters = False
