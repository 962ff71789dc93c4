"""The baseline that clusters rows by their embeddings as they are: what k-means finds without gates."""

from __future__ import annotations

from typing import Literal

from autoembed.methods import ihas


class Config(ihas.Config):
    """iHAS's options, with clusters of the raw embeddings."""

    method: str = "embedding_clusters"
    cluster_on: Literal["embedding"] = "embedding"


class Supernet(ihas.Supernet):
    """The same search and masks, for other clusters."""
