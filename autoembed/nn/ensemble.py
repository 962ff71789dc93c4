"""Several backbones on one set of embedding tables: each its own, or one that rank-1 adapters turn into each of them.

The second kind is BatchEnsemble (Wen et al., ICLR 2020, arXiv 2002.06715) as TabM trains it (Gorishniy et al., ICLR
2025, arXiv 2410.24210): all members run in one pass. B batch, K member, F field, D dim.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from autoembed.architecture import Architecture
from autoembed.nn.backbones import base
from autoembed.nn.layers import Entries, FlatLinear
from autoembed.types import Array


def build_backbone(architecture: Architecture) -> nn.Module:
    """An architecture's backbone with fresh weights, giving logits [B], [B, C] of classes, or [B, K] of its members."""

    def one() -> base.Backbone:
        pairs, outputs = len(architecture.built), architecture.outputs
        return base.build(architecture.backbone, architecture.active(), pairs=pairs, outputs=outputs)

    ensemble = architecture.ensemble
    if ensemble is None:
        return one()
    if ensemble.share == "tables":
        return OwnMembers([one() for _ in range(ensemble.members)])
    return SharedMembers(one(), architecture.active(), ensemble.members)


class OwnMembers(nn.Module):
    """A backbone for each member, on the same embeddings."""

    def __init__(self, backbones: list[base.Backbone]) -> None:
        super().__init__()
        self.backbones = nn.ModuleList(backbones)

    def forward(self, e_BFD: Tensor, first_BF: Tensor | None) -> Tensor:
        """Embeddings [B, F, D] and first-order weights [B, F] -> logits [B, K]."""
        return torch.stack([backbone(e_BFD, first_BF) for backbone in self.backbones], dim=1)


class SharedMembers(nn.Module):
    """One backbone for all members, told apart by adapters.

    A member reads each active entry times a number of its own, which starts at random as 1 or -1. Each linear layer
    is adapted (`AdaptedLinear`), the last one and batch norms are each member's own, and all other weights are shared,
    first-order weights among them. A batch of B rows runs as one of B*K.

    Args:
        backbone: what is shared; its layers are replaced in place.
        active: which entries may differ from zero, bool [F, D].
        members: K.
    """

    def __init__(self, backbone: base.Backbone, active: Array, members: int) -> None:
        super().__init__()
        self.members = members
        _adapt(backbone, members)
        self.backbone = backbone
        self.entries = Entries(active)
        self.read = nn.Parameter(torch.randint(2, (members, self.entries.size)) * 2.0 - 1)
        biased = any(isinstance(layer, OwnLinear) and layer.bias is not None for layer in backbone.modules())
        self.bias = None if biased else nn.Parameter(torch.zeros(members))

    def forward(self, e_BFD: Tensor, first_BF: Tensor | None) -> Tensor:
        """Embeddings [B, F, D] and first-order weights [B, F] -> logits [B, K]."""
        read: Tensor = self.read
        shape = e_BFD.shape
        if not self.entries.all:
            read = read.new_zeros(self.members, shape[1] * shape[2]).index_copy(1, self.entries.index, read)
        wide = (e_BFD.unsqueeze(1) * read.view(self.members, *shape[1:])).flatten(0, 1)
        first = None if first_BF is None else first_BF.repeat_interleave(self.members, dim=0)
        out: Tensor = self.backbone(wide, first).view(-1, self.members)
        return out if self.bias is None else out + self.bias

    @torch.no_grad()
    def inherit(self, source: base.Backbone) -> None:
        """Copies a single backbone's weights, to each member where it has its own; adapters stay as they are."""
        state = source.state_dict()
        for name, tensor in self.backbone.state_dict().items():
            theirs = state.get(name.replace(".plain.", "."))
            if theirs is not None:
                tensor.copy_(theirs.flatten().repeat(tensor.numel() // theirs.numel()).view(tensor.shape))


class AdaptedLinear(nn.Module):
    """A linear layer that K members share: y = write_k * (W (read_k * x)) + bias_k, with adapters of 1 at the start.

    A layer that `reads_entries` has no `read`: the adapter of the backbone's input stands in its place.
    """

    def __init__(self, plain: nn.Linear, members: int, *, reads_entries: bool) -> None:
        super().__init__()
        self.plain = nn.Linear(plain.in_features, plain.out_features, bias=False)
        self.plain.weight = plain.weight
        self.read = None if reads_entries else nn.Parameter(torch.ones(members, plain.in_features))
        self.write = nn.Parameter(torch.ones(members, plain.out_features))
        self.bias = None if plain.bias is None else nn.Parameter(plain.bias.detach().repeat(members, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[B*K, ..., in] -> [B*K, ..., out]."""
        if self.read is not None:
            x = _each(x, self.read, torch.mul)
        x = _each(self.plain(x), self.write, torch.mul)
        return x if self.bias is None else _each(x, self.bias, torch.add)


class OwnLinear(nn.Module):
    """A linear layer to one number, of which each member has its own."""

    def __init__(self, plain: nn.Linear, members: int) -> None:
        super().__init__()
        own = [plain, *(nn.Linear(plain.in_features, 1) for _ in range(members - 1))]
        self.weight = nn.Parameter(torch.cat([one.weight.detach() for one in own]))
        self.bias = None if plain.bias is None else nn.Parameter(torch.stack([one.bias.detach() for one in own]))

    def forward(self, x: Tensor) -> Tensor:
        """[B*K, in] -> [B*K, 1]."""
        x = _each(x, self.weight, torch.mul).sum(-1, keepdim=True)
        return x if self.bias is None else _each(x, self.bias, torch.add)


class OwnNorm(nn.BatchNorm1d):
    """Batch norm with each member's own statistics and weights."""

    def __init__(self, plain: nn.BatchNorm1d, members: int) -> None:
        super().__init__(plain.num_features * members)
        self.members = members

    def forward(self, x: Tensor) -> Tensor:
        """[B*K, C, ...] -> the same."""
        own = x.reshape(-1, self.num_features, *x.shape[2:])
        return super().forward(own).view(x.shape)


def _each(x: Tensor, own: Tensor, how: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """x [B*K, ..., C] and the numbers [K, C] of each member's own, put together."""
    members = len(own)
    wide = x.reshape(-1, members, *x.shape[1:])
    return how(wide, own.view(members, *[1] * (x.dim() - 2), -1)).view(x.shape)


def _adapt(module: nn.Module, members: int) -> None:
    """Replaces the linear layers and batch norms below a module, but for parts that read no rows."""
    if not getattr(module, "reads_rows", True):
        return
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Linear) and child.out_features == 1:
            setattr(module, name, OwnLinear(child, members))
        elif isinstance(child, nn.Linear):
            setattr(module, name, AdaptedLinear(child, members, reads_entries=isinstance(module, FlatLinear)))
        elif isinstance(child, nn.BatchNorm1d):
            setattr(module, name, OwnNorm(child, members))
        else:
            _adapt(child, members)
