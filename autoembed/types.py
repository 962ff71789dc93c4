"""Types that have no better home."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

# Any stands for the type of the elements: functions tell it, and the shape, in words.
Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
# Called with (stage, done, total).
Progress = Callable[[str, int, int], None]
