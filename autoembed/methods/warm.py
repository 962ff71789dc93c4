"""Warm starts that searches share: trained once, kept in a folder, found again by everything that decides them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from autoembed.data.dataset import Dataset
from autoembed.events import EpochEnd, EpochReport
from autoembed.methods.supernet import Supernet
from autoembed.metrics import Metrics
from autoembed.training import TrainConfig

_RANDOM = "random state"


@dataclass(frozen=True, kw_only=True)
class WarmStarts:
    """A folder of warm starts, of at most `most` bytes together: the oldest ones go first.

    A net that is loaded is bit for bit the one that would be trained here: the key holds the weights and the state of
    the random numbers that training begins with, and the file the state that it ends with. Methods share a warm start
    where it is the base class's (`Supernet.plain_warm_start`).
    """

    folder: Path
    most: int = 1 << 30

    def train(
        self,
        net: Supernet,
        dataset: Dataset,
        recipe: TrainConfig,
        train: Callable[[EpochReport], object],
        report: EpochReport,
        *,
        rows: int,
        seed: int,
        monitor: str | None,
    ) -> None:
        """Trains a net by `train`, or loads what another search has trained from the same start.

        Args:
            net: at its start; its weights move in place.
            dataset: what is trained on.
            recipe: of the training.
            train: trains the net and gives its epochs to the report.
            report: told the epochs, those of a loaded warm start as well.
            rows: how many rows of train are trained on.
            seed: of their order.
            monitor: the metric whose best epoch is kept.
        """
        own = _own_state(net)
        if 2 * sum(tensor.numel() * tensor.element_size() for tensor in own.values()) > self.most:
            train(report)
            return
        facts = {
            "torch": torch.__version__,
            "data": dataset.fingerprint,
            "parent": net.parent.model_dump(mode="json"),
            "method": None if net.plain_warm_start else [type(net).__module__, net.config.model_dump(mode="json")],
            "nested": net.config.prefixes if net.nested else None,
            "ordered units": net.prefixes is not None,
            "recipe": recipe.model_dump(mode="json"),
            "rows": rows,
            "seed": seed,
            "monitor": monitor,
        }
        path = self.folder / f"{_digest(facts, own, _random_state(net))}.safetensors"
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):  # whoever comes second waits, and has it for nothing
            if not _load(path, net, report):
                curve: list[dict[str, object]] = []

                def told(event: EpochEnd) -> None:
                    curve.append({**vars(event), "valid": event.valid.model_dump()})
                    report(event)

                train(told)
                self._save(path, net, curve)

    def _save(self, path: Path, net: Supernet, curve: list[dict[str, object]]) -> None:
        tensors = {name: tensor.detach().contiguous() for name, tensor in _own_state(net).items()}
        tensors |= {f"{_RANDOM} {number}": state for number, state in enumerate(_random_state(net))}
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        kept = sorted(self.folder.glob("*.safetensors"), key=lambda file: file.stat().st_mtime)
        while kept and sum(file.stat().st_size for file in kept) + size > self.most:
            kept.pop(0).unlink(missing_ok=True)
        beside = path.with_suffix(f".{os.getpid()}")
        try:
            save_file(tensors, beside, metadata={"curve": json.dumps(curve)})
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)


def _own_state(net: Supernet) -> dict[str, Tensor]:
    """Weights and statistics without the gates, which a warm start does not move."""
    gates = {id(gate) for gate in net.arch_parameters()}
    names = {name for name, parameter in net.named_parameters() if id(parameter) in gates}
    return {name: tensor for name, tensor in net.state_dict().items() if name not in names}


def _random_state(net: Supernet) -> list[Tensor]:
    device = net.weight.device
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _digest(facts: Mapping[str, object], state: Mapping[str, Tensor], random: list[Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for tensor in (*(state[name] for name in sorted(state)), *random):
        digest.update(str((tensor.device.type, tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _load(path: Path, net: Supernet, report: EpochReport) -> bool:
    """Loads a warm start into a net and tells its epochs; whether there is one that can be read."""
    try:
        with safe_open(path, framework="pt") as file:
            told = json.loads((file.metadata() or {})["curve"])
            curve = [EpochEnd(**{**values, "valid": Metrics(**values["valid"])}) for values in told]
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return False
    random = [tensors.pop(name) for name in sorted(name for name in tensors if name.startswith(_RANDOM))]
    net.load_state_dict(tensors, strict=False)
    torch.set_rng_state(random[0])
    if len(random) > 1:
        torch.cuda.set_rng_state(random[1], net.weight.device)
    for event in curve:
        report(event)
    return True
