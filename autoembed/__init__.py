"""autoembed: features, embedding widths and interactions for click models, found and taken to production.

`import autoembed` loads none of torch, Ray, Optuna and MLflow: each name is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autoembed import ranges as ranges
    from autoembed.api import rank as rank
    from autoembed.architecture import Architecture as Architecture
    from autoembed.bundle import Bundle as Bundle
    from autoembed.bundle import load_bundle as load_bundle
    from autoembed.data.readers import DataSpec as DataSpec
    from autoembed.errors import AutoembedError as AutoembedError
    from autoembed.errors import BundleError as BundleError
    from autoembed.errors import DataError as DataError
    from autoembed.errors import SpaceError as SpaceError
    from autoembed.errors import StudyError as StudyError
    from autoembed.errors import TrialError as TrialError
    from autoembed.estimator import AutoEmbedClassifier as AutoEmbedClassifier
    from autoembed.estimator import AutoEmbedRegressor as AutoEmbedRegressor
    from autoembed.export.formats import export_bundle as export_bundle
    from autoembed.nn.model import build_model as build_model
    from autoembed.ranking.ranking import Ranking as Ranking
    from autoembed.refreshing import refresh as refresh
    from autoembed.reuse import train_architecture as train_architecture
    from autoembed.space import SearchSpace as SearchSpace
    from autoembed.study.study import Study as Study
    from autoembed.study.study import search as search

__version__ = "0.1.0"

_HOMES = {
    "Architecture": "architecture",
    "AutoEmbedClassifier": "estimator",
    "AutoEmbedRegressor": "estimator",
    "Bundle": "bundle",
    "DataSpec": "data.readers",
    "Ranking": "ranking.ranking",
    "SearchSpace": "space",
    "Study": "study.study",
    "build_model": "nn.model",
    "export_bundle": "export.formats",
    "load_bundle": "bundle",
    "rank": "api",
    "refresh": "refreshing",
    "search": "study.study",
    "train_architecture": "reuse",
    **dict.fromkeys(("AutoembedError", "BundleError", "DataError", "SpaceError", "StudyError", "TrialError"), "errors"),
}
__all__ = [*sorted(_HOMES), "ranges"]


def __getattr__(name: str) -> object:
    if name == "ranges":
        return import_module("autoembed.ranges")
    if name not in _HOMES:
        raise AttributeError(f"module 'autoembed' has no attribute {name!r}")
    found = getattr(import_module(f"autoembed.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
