"""What a searched net offers within a limit: architectures to retrain, and how. The best on valid is the answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from autoembed.architecture import Architecture
from autoembed.budget import Limit
from autoembed.errors import SpaceError
from autoembed.methods import members, tower
from autoembed.methods.method import SearchConfig
from autoembed.methods.supernet import Answer, Supernet
from autoembed.nn.model import Model, cost_of
from autoembed.plans import Ensemble
from autoembed.storage import ProjectedStorage
from autoembed.training import TrainConfig

Ask = members.Ask
ONE = Ensemble()
_FULL, _HALVINGS = 0.95, 4
Narrow = Literal["kept", "projected"]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An architecture to retrain by a recipe, from `start`'s weights or fresh ones.

    Fresh weights of a sparse architecture keep the entries that `like` keeps.

    `note` says in a sentence why the answer is this one, if it is and is not the method's own choice.
    """

    architecture: Architecture
    recipe: TrainConfig
    start: Model | None = None
    like: Model | None = None
    note: str | None = None

    @property
    def key(self) -> tuple[str, str, bool]:
        """Equal for candidates of one net that lead to equal models."""
        return self.architecture.model_dump_json(), self.recipe.model_dump_json(), self.start is None


@dataclass(frozen=True, kw_only=True)
class Offer:
    """The candidates within a limit, the method's own choice first, and what a user should know of that choice."""

    limit: Limit
    candidates: tuple[Candidate, ...]
    notes: tuple[str, ...]

    @property
    def keys(self) -> tuple[object, ...]:
        """Equal for offers of one net that lead to equal models."""
        return tuple(candidate.key for candidate in self.candidates)


def offer(
    net: Supernet,
    train: TrainConfig,
    limit: Limit,
    root: Architecture,
    ensemble: Ensemble = ONE,
    narrow: Narrow = "kept",
    further: TrainConfig | None = None,
) -> Offer:
    """A net's own choice, retrained in the ways of its options, and the simple rivals that it must beat.

    Each is the `ensemble` of what the net has found, and the limit holds all of its members. Narrow rows stay at their
    kept dims, or are projected. With a `further` recipe there is its own choice alone, trained by that from the net's
    weights. SpaceError if even the smallest answer takes too many bytes.
    """

    def find(ask: Ask) -> Answer:
        return within(members.spreading(projecting(ask, narrow), ensemble), limit, root)

    answer = tower.choose(net, find, limit)
    own, inherits = answer.architecture, isinstance(net.config, SearchConfig) and net.config.inherits
    if further is not None:
        from_net = Candidate(architecture=own, recipe=further, start=members.compact(net, own))
        return Offer(limit=limit, candidates=(from_net,), notes=answer.notes)
    found, sparse = [], members.single(own).storage.kind == "sparse"
    start = members.compact(net, own) if inherits or sparse else None
    if inherits:
        found.append(Candidate(architecture=own, recipe=net.config.inherit_train.of(train), start=start))
    if not inherits or net.config.retrain == "best":
        found.append(Candidate(architecture=own, recipe=train, like=start if sparse else None))
    for rival, words in _rivals(net, find, own):
        note = f"retrained, {words} within the same bytes is better on valid than its own choice: it is the answer"
        found.append(Candidate(architecture=rival, recipe=train, note=note))
    return Offer(limit=limit, candidates=tuple(found), notes=answer.notes)


def _rivals(net: Supernet, find: Callable[[Ask], Answer], own: Architecture) -> list[tuple[Architecture, str]]:
    """Simple architectures within a limit, those of them that the net's options ask for and the limit holds."""

    def ask(rival: Callable[[int], Architecture | None], budget: int | None) -> Answer:
        found = None if budget is None else rival(budget)
        if found is None:
            raise SpaceError("the limit holds no such architecture")
        return Answer(architecture=found)

    found: list[tuple[Architecture, str]] = []
    for words, rival in net.rivals().items():
        try:
            one = find(tower.like(net, partial(ask, rival), own)).architecture
        except SpaceError:
            continue
        if one not in (own, *(other for other, _ in found)):
            found.append((one, words))
    return found


def projecting(ask: Ask, narrow: Narrow) -> Ask:
    """Asks for answers whose narrow rows are projected, if they shall be."""

    def asked(limit: int | None) -> Answer:
        found = ask(limit)
        return replace(found, architecture=projected(found.architecture))

    return ask if narrow == "kept" else asked


def projected(architecture: Architecture) -> Architecture:
    """The same rows, projected; itself where all rows keep the same dims. SpaceError if it keeps single entries."""
    if architecture.clusters:
        return architecture.replace(clusters=tuple(projected(cluster) for cluster in architecture.clusters))
    mask = architecture.mask()
    if architecture.storage.kind == "sparse":
        raise SpaceError("embedding.narrow: projected needs whole rows, but granularity: entry keeps single entries")
    kept = mask[mask.any(axis=1)]
    if architecture.storage.kind != "mixed" or (kept == kept[0]).all():
        return architecture
    return architecture.replace(storage=ProjectedStorage(step=architecture.storage.step))


def within(ask: Ask, limit: Limit, root: Architecture) -> Answer:
    """What `ask` answers within a limit; SpaceError if even its smallest answer takes too many bytes.

    Args:
        ask: an answer within so many bytes of embeddings.
        limit: of the embeddings, of the whole model, or of both.
        root: what a limit by width is counted from.
    """
    budget = limit.resolve(root)
    if limit.bytes is None:
        return ask(budget)
    budget = min(budget or limit.bytes, limit.bytes)
    too_few, too_many, over = 0, None, 0
    while True:
        # Fewer bytes of embeddings also mean fewer inputs of the tower: a few rounds settle it.
        try:
            answer = ask(budget)
        except SpaceError:
            if too_many is None:
                raise
            too_few = budget
        else:
            cost = cost_of(answer.architecture)
            over = cost.bytes - limit.bytes
            if over <= 0:
                return answer if too_many is None else _fuller(ask, answer, budget, too_many, limit.bytes)
            too_many = min(budget, cost.embedding_bytes)  # as many hold the same answer
        if too_many - too_few < 2:
            raise SpaceError(
                f"budget.bytes must hold the backbone and one dim, but {limit.bytes:,} are {over:,} too few for "
                f"{root.backbone['name']}: raise it, or make backbone.hidden smaller"
            )
        budget = max(too_many - over, (too_few + too_many) // 2)


def _fuller(ask: Ask, answer: Answer, fits: int, too_many: int, limit: int) -> Answer:
    """The answer that takes the most bytes within a limit, of a few between a budget that fits and one that does not.

    What the tower saved on the way down may have been more than it had to.
    """
    most = cost_of(answer.architecture).bytes
    for _ in range(_HALVINGS):
        if most >= _FULL * limit or too_many - fits < 2:
            break
        middle = (fits + too_many) // 2
        found = ask(middle)
        size = cost_of(found.architecture).bytes
        if size > limit:
            too_many = middle
            continue
        fits = middle
        if size > most:
            answer, most = found, size
    return answer
