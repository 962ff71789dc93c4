"""What a trained model takes from each field: how much worse it is without the field, and how it leans on it.

After KAN-KO and KAN-SI (arXiv 2509.23366), of a field's embedding instead of a column's spline. A ranking says what a
column tells about the label by itself; these scores say what one model makes of it beside the other fields.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import polars as pl
import torch
from torch import Tensor

from autoembed.batches import batches
from autoembed.data.dataset import Dataset
from autoembed.data.spec import Split
from autoembed.errors import StudyError
from autoembed.nn.model import CTRModel, Model
from autoembed.types import Floats, Progress

_CPU = torch.device("cpu")
_IDS = 4096
_ROWS = 16384


def field_scores(
    model: Model,
    dataset: Dataset,
    split: Split = "valid",
    device: torch.device = _CPU,
    progress: Progress | None = None,
) -> pl.DataFrame:
    """Knockout and saliency of each field that a model reads, the largest rise of logloss first (ties by name).

    Columns: field; logloss_rise and auc_fall, of the whole split, when the field's embedding and its first-order weight
    are the same for all rows, the mean over train rows; logloss_se and auc_se, their standard errors, paired over rows
    (of AUC, DeLong et al., Biometrics 1988); saliency, the mean norm of the gradient of a row's logloss with respect to
    the field's embedding. Logloss is in nats. What a field adds to the inputs of built pairs stays as it is: these have
    embeddings of their own. A negative rise is of a field that the model would do better without. Saliency tells how
    steeply the loss depends on a field, not whether the field helps: noise that is overfitted has a high one. Where
    rows have weights, all means are weighted, and the errors are those of the rows as they were seen.

    Args:
        model: a trained compact model. It is left in evaluation mode.
        dataset: the data that it was trained on.
        split: whose rows to score.
        device: where to run it.
        progress: called with (step, done, total).

    Raises:
        StudyError: the model has several models for clusters of rows.

    Example:
        result, model = run_trial(config, dataset, lambda values: None)
        field_scores(model, dataset).filter(pl.col("logloss_rise") < 2 * pl.col("logloss_se"))["field"]
    """
    if not isinstance(model, CTRModel):
        raise StudyError(
            f"field scores are of one model, but this one has {len(model.models)}, one for each cluster of rows: "
            "choose a trial without clusters"
        )
    model = model.to(device).eval()
    names = model.architecture.inputs
    means = mean_embeddings(model, dataset, device)
    before = _logits(model, dataset, split, device)
    worse = dataset.task.compare(dataset.labels(split), before, dataset.weights(split))
    gradients = saliency(model, dataset, split, device)
    rows = []
    for place, name in enumerate(names):
        with _embeddings(model, _knocked_out(place, means[place])):
            without = _logits(model, dataset, split, device)
        rows.append({"field": name, **worse(without), "saliency": float(gradients[place])})
        if progress:
            progress("knockout", place + 1, len(names))
    return pl.DataFrame(rows).sort([rise_of(dataset), "field"], descending=[True, False])


def rise_of(dataset: Dataset) -> str:
    """The column of `field_scores` that says how much the loss rises: logloss_rise for clicks."""
    return f"{dataset.task.criterion.name}_rise"


@torch.no_grad()
def mean_embeddings(model: CTRModel, dataset: Dataset, device: torch.device) -> Tensor:
    """The mean over train rows of each field's embedding: float [F, D (+ 1)].

    It is made of the counts of the fields' values, and of the rows themselves where one value does not make a field,
    or where rows have weights.
    """
    weights = dataset.weights("train")
    if weights is not None:
        parts = batches(dataset, "train", _ROWS, device, columns=(weights,))
        sums = [torch.einsum("b,bfd->fd", own.double(), model.embed(ids).double()) for ids, _, own in parts]
        return (torch.stack(sums).sum(0) / float(weights.sum(dtype=np.float64))).float()
    if model.embedding.pool is not None or any(field.readers for field in model.architecture.fields):
        whole = [model.embed(ids).double().sum(0) for ids, _ in batches(dataset, "train", _ROWS, device)]
        return (torch.stack(whole).sum(0) / dataset.rows("train")).float()
    known = dataset.counts
    counts = [known[dataset.schema.index(field.name)] for field in model.architecture.fields]
    total: Tensor | None = None
    for start in range(0, max(len(own) for own in counts), _IDS):
        ids, weight = np.zeros((2, _IDS, len(counts)), dtype=np.int64)
        for place, own in enumerate(counts):
            part = own[start : start + _IDS]
            ids[: len(part), place] = np.arange(start, start + len(part))
            weight[: len(part), place] = part
        e_IFD = model.embedding(torch.from_numpy(ids.astype(np.int32)).to(device)).double()
        part_FD = torch.einsum("if,ifd->fd", torch.from_numpy(weight).to(device).double(), e_IFD)
        total = part_FD if total is None else total + part_FD
    assert total is not None
    return (total / dataset.rows("train")).float()


def saliency(model: CTRModel, dataset: Dataset, split: Split, device: torch.device) -> Floats:
    """The mean norm of the gradient of a row's logloss with respect to each field's embedding: float [F].

    Entries that the architecture does not keep count for nothing; they are exact zeros in the embedding.
    """
    total: Tensor | None = None
    weights = dataset.weights(split)
    for ids, labels, *own in batches(dataset, split, _ROWS, device, columns=() if weights is None else (weights,)):
        held: list[Tensor] = []

        def hold(e_BFD: Tensor, held: list[Tensor] = held) -> Tensor:
            held.append(e_BFD.detach().requires_grad_())
            return held[0]

        with torch.enable_grad(), _embeddings(model, hold):
            # The sum: the gradient of a row's embedding is then that of its own loss.
            loss = dataset.task.loss(model(ids).float(), labels, reduction="sum")
            (gradient_BFD,) = torch.autograd.grad(loss, held)
        norm_BF = torch.where(held[0] == 0, 0.0, gradient_BFD).norm(dim=2).double()
        norm_F = (norm_BF * own[0].double()[:, None] if own else norm_BF).sum(0)
        total = norm_F if total is None else total + norm_F
    assert total is not None
    whole = dataset.rows(split) if weights is None else float(weights.sum(dtype=np.float64))
    mean: Floats = (total / whole).cpu().numpy()
    return mean


@contextmanager
def _embeddings(model: CTRModel, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Puts what `change` makes of the embeddings [B, F, D (+ 1)] in their place."""
    hook = model.embedding.register_forward_hook(lambda module, ids, e_BFD: change(e_BFD))
    try:
        yield
    finally:
        hook.remove()


def _knocked_out(place: int, mean_D: Tensor) -> Callable[[Tensor], Tensor]:
    def change(e_BFD: Tensor) -> Tensor:
        out = e_BFD.clone()
        out[:, place] = mean_D
        return out

    return change


@torch.no_grad()
def _logits(model: CTRModel, dataset: Dataset, split: Split, device: torch.device) -> Floats:
    parts = [model(ids).double().cpu() for ids, _ in batches(dataset, split, _ROWS, device)]
    logits: Floats = torch.cat(parts).numpy()
    return logits
