"""The search loop: a warm start, then weights and gates, then perhaps weights once more on all rows.

They move in turn, weights on train batches and gates on held-out ones: first-order bilevel optimisation (DARTS, Liu et
al. 2019, sec. 2.3, xi = 0), as in DNIS (arXiv 2006.04466, sec. 3.3). Or they move together, on the same train batch, as
in OptInter (arXiv 2108.01265, sec. 3.4).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from autoembed.auxiliary import AuxiliaryLosses, logits_of
from autoembed.batches import RowWeights, batches, sampled
from autoembed.data.dataset import Dataset
from autoembed.data.spec import Split
from autoembed.errors import SpaceError
from autoembed.events import EpochEnd, EpochReport, Phase, Report, SearchEnd
from autoembed.methods.method import GateConfig, SearchConfig, WidthConfig
from autoembed.methods.supernet import Supernet
from autoembed.methods.warm import WarmStarts
from autoembed.pairwise import PairwiseLoss
from autoembed.shuffle import RowOrder, Shuffle, Stretch
from autoembed.task import metric_in
from autoembed.training import (
    Optimiser,
    Plateau,
    TrainConfig,
    check_finite,
    fit,
    on_valid,
)
from autoembed.types import Array

_HELD = 20_000  # rows that answers are compared by


def split_train(total: int, fraction: float, seed: int) -> tuple[Stretch, Stretch]:
    """Row numbers of the weights' part and of the gates' held-out part `arch`, both drawn from the train split."""
    order = Shuffle(total, [seed, 1])
    held = round(total * fraction)
    return Stretch(order, held, total), Stretch(order, 0, held)


def search(
    net: Supernet,
    dataset: Dataset,
    train: TrainConfig,
    *,
    device: torch.device,
    seed: int,
    report: Report,
    monitor: str | None = None,
    warm: WarmStarts | None = None,
) -> float:
    """Trains a supernet's weights and gates in place; seconds spent. Methods without a search cost nothing.

    The warm start and the refit stop early by `monitor` and keep their best epoch. Searches that have the folder `warm`
    in common train equal warm starts once.

    Reports the epochs of the warm start, the search and the refit, and the end of the search. Valid is read to tell
    searches that lead nowhere and to lower the learning rate by `decay`, and moves no gate.
    """
    start = perf_counter()
    config = net.config
    if not isinstance(config, SearchConfig):
        return 0.0
    total = dataset.rows("train")
    gates = config if isinstance(config, GateConfig) and config.epochs else None
    rows, held = split_train(total, config.held_out, seed)
    if config.held_out and not len(held):
        name = "arch_fraction" if gates else "held_fraction"
        raise SpaceError(f"{name} must hold out at least one of {total} rows, but got {config.held_out:g}")
    if isinstance(config, WidthConfig) or net.rounds:
        net.held, net.held_weights = _held(dataset, device, held if len(held) and not (gates and gates.refit) else None)
    if config.warm_epochs:
        recipe = config.warm_train.of(train).model_copy(update={"epochs": config.warm_epochs})
        told = _of_phase(report, "warm")

        def train_it(report: EpochReport) -> None:
            fit(
                net,
                dataset,
                recipe,
                device=device,
                seed=seed,
                rows=rows,
                report=report,
                monitor=monitor,
                fresh=not net.carried,
            )

        if warm is None:
            train_it(told)
        else:
            warm.train(net, dataset, recipe, train_it, told, rows=len(rows), seed=seed, monitor=monitor)
    if gates:
        recipe = gates.search_train.of(train)
        _move_gates(net, dataset, recipe, rows, held, device=device, seed=seed, report=report, monitor=monitor)
        if gates.refit:
            _refit(net, dataset, train, device=device, seed=seed, report=report, monitor=monitor)
    if net.rounds:
        own = rows if config.held_out else None
        _prune(net, dataset, train, own, device=device, seed=seed, report=report, monitor=monitor)
    net.eval()
    if ended := net.on_search_end(dataset, device):
        report(SearchEnd(extra=ended))
    return perf_counter() - start


def _held(dataset: Dataset, device: torch.device, rows: RowOrder | None) -> tuple[tuple[Tensor, Tensor], Tensor | None]:
    """Ids int [N, F] and labels float [N] of rows to compare answers by, and their weights [N] if there are such.

    These are `rows` of train that no weight is trained on, if there are any, so that valid, by which the retrained
    models are compared, has not chosen what it compares; else rows of valid.
    """
    split: Split = "valid" if rows is None else "train"
    total = dataset.rows("valid") if rows is None else len(rows)
    taken: Array = np.linspace(0, total - 1, min(total, _HELD)).astype(np.int64)
    if rows is not None:
        taken = np.sort(rows[taken])
    ids, labels = (torch.from_numpy(part[taken]) for part in (dataset.ids(split), dataset.labels(split)))
    weights = dataset.weights(split)
    if weights is not None and not weights[taken].any():
        raise SpaceError("the rows that answers are compared by must have some weight, but have none: hold out more")
    own = None if weights is None else torch.from_numpy(weights[taken] / weights[taken].mean(dtype=np.float64)).float()
    return (ids.to(device), labels.to(device)), None if own is None else own.to(device)


def _of_phase(report: Report, phase: Phase) -> EpochReport:
    return lambda event: report(replace(event, phase=phase))


def _cycle(
    dataset: Dataset,
    size: int,
    device: torch.device,
    held: RowOrder,
    seed: int,
    pairs: PairwiseLoss,
    columns: Sequence[Array],
) -> Iterator[tuple[Tensor, ...]]:
    """Held-out batches without end, shuffled again each time round."""
    size = min(size, len(held))
    for turn in count():
        order = pairs.order(held, [seed, 2, turn])
        yield from batches(dataset, "train", size, device, rows=order, least=size, columns=columns)


def _move_gates(
    net: Supernet,
    dataset: Dataset,
    train: TrainConfig,
    rows: RowOrder,
    held: RowOrder,
    *,
    device: torch.device,
    seed: int,
    report: Report,
    monitor: str | None,
) -> None:
    config = net.config
    whole, joint = config.update != "embedding", config.update == "joint"
    gates, task, shift = net.arch_parameters(), dataset.task, dataset.task.shift_of(train.negative_sampling)
    task.check_recipe(train.positive_weight, train.negative_sampling, train.pairwise_weight)
    weights = net.weight_parameters() if whole else net.embedding_weights()
    net.sparse_gradients(train.sparse)
    optimiser = Optimiser(net, weights, train)
    plateau = Plateau(metric_in(task, monitor, dataset.schema.group), train.min_gain * task.unit)
    weights_of, held_of = RowWeights(dataset, rows), RowWeights(dataset, rows if joint else held)
    forward = logits_of(net)
    auxiliary = AuxiliaryLosses(
        net, dataset, rows, weights_of, train.auxiliary_weights, negative_sampling=train.negative_sampling
    )
    pairs = PairwiseLoss(dataset, rows, weights_of, train.pairwise_weight, device=device, seed=seed)
    held_auxiliary, held_pairs = auxiliary, pairs
    if not joint:
        held_auxiliary = AuxiliaryLosses(net, dataset, held, held_of, train.auxiliary_weights, like=auxiliary)
        held_pairs = PairwiseLoss(dataset, held, held_of, train.pairwise_weight, device=device, seed=seed + 1)
    held_columns = (*held_of.columns, *held_pairs.columns, *held_auxiliary.columns)
    arch_batches = _cycle(dataset, train.batch_size, device, held, seed, held_pairs, held_columns)
    drawn = sampled(dataset, rows, train.negative_sampling, [seed, 7, 1])
    assert not isinstance(drawn, int)
    done, total = 0, config.epochs * -(-len(drawn) // train.batch_size)
    for epoch in range(1, config.epochs + 1):
        # Frozen means frozen: with only the embeddings moving, batch norm and dropout rest too.
        net.train(whole)
        train_total, arch_total = torch.zeros((), device=device), torch.zeros((), device=device)
        steps = 0
        drawn = sampled(dataset, rows, train.negative_sampling, [seed, 7, epoch])
        if train.negative_sampling < 1:
            weights_of.of_rows(drawn)
            pairs.of_rows(drawn)
        order = pairs.order(drawn, [seed, 3, epoch])
        columns = (*weights_of.columns, *pairs.columns, *auxiliary.columns)
        for ids, labels, *told in batches(
            dataset, "train", train.batch_size, device, rows=order, least=2, columns=columns
        ):
            net.progress = min(done / total, 1.0)  # a sample may be a batch longer than the first one
            done += 1
            if not joint:
                arch_ids, arch_labels, *more = next(arch_batches)
                own, both = held_of.of(more), forward(arch_ids)
                arch_loss = task.loss(both[0], arch_labels, train.positive_weight, weights=own)
                arch_loss = held_pairs.total(arch_loss, both[0], arch_labels, more)
                arch_loss = held_auxiliary.total(arch_loss, both, more, own)
                net.step_gates(torch.autograd.grad(arch_loss + net.penalty(), gates))
                arch_total += arch_loss.detach()
            own, both = weights_of.of(told), forward(ids)
            loss = task.loss(both[0] + shift, labels, train.positive_weight, weights=own)
            loss = pairs.total(loss, both[0], labels, told)
            loss = auxiliary.total(loss, both, told, own)
            moved = [*weights, *gates] if joint else weights
            gradients = torch.autograd.grad(loss + net.penalty() if joint else loss, moved)
            for weight, gradient in zip(weights, gradients, strict=False):
                weight.grad = gradient
            optimiser.step()
            if joint:
                net.step_gates(gradients[len(weights) :])
            train_total += loss.detach()
            steps += 1
        where = f"search epoch {epoch}"
        loss_of_epoch = check_finite(train_total / max(steps, 1), train.lr, where)
        extra = {} if joint else {"arch_loss": check_finite(arch_total / max(steps, 1), train.lr, where)}
        found = on_valid(net, dataset, device, train.lr, where)
        extra |= net.diagnostics()
        report(EpochEnd(phase="search", epoch=epoch, loss=loss_of_epoch, valid=found, extra=extra))
        plateau.see(epoch, found)
        if plateau.idle:
            optimiser.scale_lr(train.decay)


def _prune(
    net: Supernet,
    dataset: Dataset,
    train: TrainConfig,
    rows: RowOrder | None,
    *,
    device: torch.device,
    seed: int,
    report: Report,
    monitor: str | None,
) -> None:
    """Closes what makes held-out rows worse and trains on, in turn; the best net of all turns is kept.

    A net that overfits columns of noise stops early, before it has learned what takes longer, such as effects of pairs.
    A turn that gains nothing is no reason to stop: the next one may.
    """
    config, epochs = net.config, count(1)
    recipe = config.round_train.of(train).model_copy(update={"epochs": config.warm_epochs})
    task, best = dataset.task, {}
    plateau = Plateau(metric_in(task, monitor, dataset.schema.group), train.min_gain * task.unit)

    def told(event: EpochEnd) -> None:
        report(replace(event, phase="refit", epoch=next(epochs)))

    for turn in range(1, net.rounds + 1):
        net.eval()
        if not net.prune():
            break
        if plateau.see(2 * turn, on_valid(net, dataset, device, recipe.lr, "pruning")):
            best = _copy(net)
        # Another order of the rows than before: the last epoch's would come once more.
        fitted = fit(
            net, dataset, recipe, rows=rows, device=device, seed=seed + 1000 * turn, report=told, monitor=monitor
        )
        if plateau.see(2 * turn + 1, fitted.valid):
            best = _copy(net)
    if best:
        _restore(net, best)


def _copy(net: Supernet) -> dict[str, Tensor]:
    """Weights, and which entries are open."""
    tensors = {**net.state_dict(), "mask": net.mask, "backbone.alive": net.backbone.alive}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _restore(net: Supernet, state: Mapping[str, Tensor]) -> None:
    net.mask.copy_(state["mask"])
    net.backbone.alive.copy_(state["backbone.alive"])
    net.load_state_dict({name: state[name] for name in net.state_dict()})


def _refit(
    net: Supernet,
    dataset: Dataset,
    train: TrainConfig,
    *,
    device: torch.device,
    seed: int,
    report: Report,
    monitor: str | None,
) -> None:
    """Trains the weights on all rows of train with the gates as they are: the search has kept some rows from them."""
    config = net.config
    recipe = config.refit_train.of(train).model_copy(update={"epochs": config.refit_epochs})
    start = on_valid(net, dataset, device, recipe.lr, "the search")
    gates = net.arch_parameters()
    for gate in gates:
        gate.requires_grad_(False)
    told = _of_phase(report, "refit")
    fit(net, dataset, recipe, device=device, seed=seed, report=told, monitor=monitor, start=start)
    for gate in gates:
        gate.requires_grad_(True)
