"""The baseline that draws each row's cluster by a hash of its ids: routing that knows nothing."""

from __future__ import annotations

from typing import Literal

from autoembed.methods import ihas


class Config(ihas.Config):
    """iHAS's options, with clusters at random."""

    method: str = "random_clusters"
    cluster_on: Literal["random"] = "random"


class Supernet(ihas.Supernet):
    """The same search; the masks are those of random halves of the rows."""
