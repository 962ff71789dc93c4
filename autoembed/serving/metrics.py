"""Counters of a server, in Prometheus' text format."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import accumulate
from pathlib import Path

from autoembed.serving.state import State

MEDIA = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)  # seconds
_PAGE = 4096

# The columns of `Bundle.coverage`.
_SHARES = {
    "unknown": "Share of values that the model does not know, of all that it was asked about.",
    "missing": "Share of missing values, of all that the model was asked about.",
    "train_unknown": "The share of unknown values in the model's train.",
    "train_missing": "The share of missing values in the model's train.",
}
_COUNTS = {"unknown": "Values that the model did not know.", "missing": "Values that were missing."}


class ServerMetrics:
    """What has been asked and answered since the server started."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.rows, self.seconds = 0, 0.0
        self.buckets = [0] * (len(_BUCKETS) + 1)

    def answered(self, seconds: float, rows: int) -> None:
        """Counts a prediction that took so long for so many rows."""
        self.seconds += seconds
        self.rows += rows
        self.buckets[bisect_left(_BUCKETS, seconds)] += 1

    def text(self, state: State) -> str:
        """All metrics, those of the model included."""
        return "\n".join((*self._own(state), *_of_model(state))) + "\n"

    def _own(self, state: State) -> Iterator[str]:
        requests = [({"path": path, "status": str(status)}, n) for (path, status), n in sorted(self.requests.items())]
        yield from _metric("requests_total", "counter", "Requests by path and status.", requests)
        yield from _metric("rows_total", "counter", "Rows that were scored.", [({}, self.rows)])
        name = "autoembed_predict_seconds"
        yield f"# HELP {name} Seconds from a body that was read to its answer, of predictions that were made."
        yield f"# TYPE {name} histogram"
        bounds = [*map(str, _BUCKETS), "+Inf"]
        for bound, count in zip(bounds, accumulate(self.buckets), strict=True):
            yield f'{name}_bucket{{le="{bound}"}} {count}'
        yield f"{name}_sum {self.seconds:.9g}"
        yield f"{name}_count {sum(self.buckets)}"
        reloads = [({"outcome": outcome}, float(n)) for outcome, n in state.reloads.items()]
        yield from _metric("reloads_total", "counter", "New bundles that were loaded or refused.", reloads)
        refused = float(state.failure is not None)
        yield from _metric("reload_refused", "gauge", "1 while the newest bundle is refused.", [({}, refused)])
        memory = _resident()
        if memory is not None:
            yield from _metric("resident_bytes", "gauge", "Memory of the process.", [({}, memory)])


def _of_model(state: State) -> Iterator[str]:
    """The model's id, and how well it knows the values of its fields."""
    model = state.current
    info = {"model": model.id, "created": model.bundle.manifest.created}
    yield from _metric("model_info", "gauge", "The model that answers.", [(info, 1.0)])
    yield from _metric("model_rows_total", "counter", "Rows that this model scored.", [({}, float(model.rows))])
    shares = model.shares()
    for name, said in _SHARES.items():
        values = [({"field": field}, float(share)) for field, share in shares.select("field", name).iter_rows()]
        yield from _metric(f"{name}_share", "gauge", said, values)
    there = dict(zip(model.bundle.schema.names, model.counted[2].tolist(), strict=True))
    for name, said in _COUNTS.items():
        share = dict(shares.select("field", name).iter_rows())
        counts = [({"field": field}, float(round(share[field] * there[field]))) for field in share]
        yield from _metric(f"{name}_values_total", "counter", said, counts)
    every = [({"field": field}, float(there[field])) for field in shares["field"]]
    yield from _metric("values_total", "counter", "Values that the model was asked about.", every)


def _metric(name: str, kind: str, said: str, samples: Iterable[tuple[dict[str, str], float]]) -> Iterator[str]:
    yield f"# HELP autoembed_{name} {said}"
    yield f"# TYPE autoembed_{name} {kind}"
    for labels, value in samples:
        inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
        yield f"autoembed_{name}{{{inside}}} {value:.9g}" if inside else f"autoembed_{name} {value:.9g}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _resident() -> float | None:
    """Bytes that the process holds in memory; None where the system has no /proc."""
    file = Path("/proc/self/statm")
    return float(file.read_text().split()[1]) * _PAGE if file.is_file() else None
