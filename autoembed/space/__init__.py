"""Search spaces: what is fixed in a study and what may vary."""

from autoembed.space.leaves import Range
from autoembed.space.sections import Objective
from autoembed.space.space import TRACKERS, SearchSpace
from autoembed.space.text import load_mapping, load_yaml

__all__ = ["TRACKERS", "Objective", "Range", "SearchSpace", "load_mapping", "load_yaml"]
