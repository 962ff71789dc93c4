"""A study's result in two sentences: which arm is best and how sure that is, and what it saves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from autoembed.frontier.picture import in_bytes
from autoembed.task import metric_of, titled

if TYPE_CHECKING:
    from autoembed.study.results.leaderboard import Leaderboard, Row
    from autoembed.study.results.retrain import ArmsContent, Gap

SURE = 0.05  # p below which two arms are told apart
WIDE = 1.96  # standard errors to both sides of a 95 % interval


def verdict(board: Leaderboard, arms: ArmsContent | None, plain: int | None) -> tuple[str, str]:
    """What the study says.

    Args:
        board: its leaderboard.
        arms: each arm's best over seeds, if that was asked for.
        plain: bytes of uniform 32-bit rows of the same width for the same fields.
    """
    winner = next(row for row in board.rows if row.trial == board.winner)
    return f"{_quality(board, winner)} {_certainty(board, winner, arms)}.", _saving(board, winner, arms, plain)


def holm(found: Mapping[str, Gap]) -> dict[str, float]:
    """p of each arm, corrected for how many arms are compared (Holm 1979), the surest first."""
    adjusted, least = {}, 0.0
    ordered = sorted(found, key=lambda arm: found[arm]["p"])
    for place, arm in enumerate(ordered):
        least = max(least, min(1.0, found[arm]["p"] * (len(ordered) - place)))
        adjusted[arm] = least
    return adjusted


def interval(row: Row, name: str) -> tuple[float, float, float] | None:
    """The first metric on test with the ends of its 95 % interval by the rows of test; None if it is not known."""
    if row.test is None or row.test_error is None:
        return None
    value = row.test[name]
    return value, value - WIDE * row.test_error, value + WIDE * row.test_error


def _quality(board: Leaderboard, winner: Row) -> str:
    """Which arm is best by valid, and what it has on test."""
    first = board.predicts.metrics[0]
    assert winner.valid is not None
    assert winner.test is not None
    valid = winner.valid[board.metric.partition("_")[2]]
    found = interval(winner, first.name)
    held = "" if found is None else f" (95 % interval by the rows of test: {found[1]:.4f} to {found[2]:.4f})"
    return (
        f"{winner.arm} is best by {titled(board.metric)}, with {valid:.4f}, and its test {first.title} is "
        f"{winner.test[first.name]:.4f}{held};"
    )


def _certainty(board: Leaderboard, winner: Row, arms: ArmsContent | None) -> str:
    rivals = [row for row in board.rows if row.test is not None and row.arm != winner.arm]
    if not rivals:
        return "there is no other arm to compare it with"
    if arms is not None and arms["paired"]:
        return _over_seeds(winner, arms)
    first = board.predicts.metrics[0]
    assert winner.test is not None
    ahead = {row.arm: first.figure(winner.test) - first.figure(row.test) for row in rivals if row.test is not None}
    errors = {
        row.arm: WIDE * math.hypot(winner.test_error, row.test_error)
        for row in rivals
        if row.test_error is not None and winner.test_error is not None
    }
    level = [arm for arm in errors if abs(ahead[arm]) <= errors[arm]]
    behind = [arm for arm in ahead if ahead[arm] < 0 and arm not in level]
    advice = "retrain over seeds (`autoembed retrain RUN --trial all --seeds 5`) to know more"
    if behind:
        return f"on test, {_listed(behind)} {_are(behind)} ahead of it, so do not rely on it: {advice}"
    if level:
        closest = min(level, key=lambda arm: abs(ahead[arm]))
        return (
            f"its distance on test from {_listed(level)} lies within the error of the rows of test (from {closest}: "
            f"{ahead[closest]:+.4f}, error ± {errors[closest]:.4f}), so with one seed it is not shown to be "
            f"better: {advice}"
        )
    return f"it is ahead of every other arm on test by more than the error of the rows of test, with one seed: {advice}"


def _over_seeds(winner: Row, arms: ArmsContent) -> str:
    """What paired tests over seeds say of the arm that leads by mean valid."""
    metric, sign = titled(arms["metric"]), metric_of(arms["metric"]).sign
    leader, paired = arms["leader"], arms["paired"]
    number = len(arms["arms"][leader]["seeds"])
    found = holm(paired)
    sure = [arm for arm in found if found[arm] < SURE]
    ahead = [arm for arm in sure if sign * paired[arm]["mean"] > 0]
    behind = [arm for arm in sure if arm not in ahead]
    level = [arm for arm in found if arm not in sure]
    who = "it" if leader == winner.arm else f"{leader}, which is best by the mean on valid over seeds,"
    said = []
    if ahead:
        gap = min(sign * paired[arm]["mean"] for arm in ahead)
        p = max(found[arm] for arm in ahead)
        said.append(f"{who} is ahead of {_listed(ahead)} by {gap:.4f} of {metric} or more (p ≤ {_p(p)})")
        who = "it"
    if behind:
        said.append(f"{who} is behind {_listed(behind)} on test, although not on valid")
        who = "it"
    if level:
        closest = min(level, key=lambda arm: abs(paired[arm]["mean"]))
        said.append(
            f"{who} is not told apart from {_listed(level)} (from {closest}: {sign * paired[closest]['mean']:+.4f} of "
            f"{metric}, p = {_p(found[closest])})"
        )
    return f"over {number} seeds {', and '.join(said)}; p of paired t-tests, Holm's correction"


def _saving(board: Leaderboard, winner: Row, arms: ArmsContent | None, plain: int | None) -> str:
    """What the winner takes in bytes, beside the uniform arm and beside uniform rows of 32 bits."""
    held = winner.embedding_bytes
    if held is None or plain is None:
        return "What its embeddings take in bytes was not recorded."
    against = f"{_less(held, plain)} uniform 32-bit rows of the same width would take ({in_bytes(plain)})"
    if _uniform(winner.arm):
        return (
            f"It is an arm of uniform rows, so the search has brought nothing beyond these; its embeddings take "
            f"{in_bytes(held)}, {against}."
        )
    base = next((row for row in board.rows if _uniform(row.arm) and row.embedding_bytes is not None), None)
    beside = ""
    if base is not None and base.embedding_bytes is not None:
        beside = (
            f", and {_less(held, base.embedding_bytes)} the arm {base.arm} takes ({in_bytes(base.embedding_bytes)})"
        )
    return f"Its embeddings take {in_bytes(held)}, {against}{beside}."


def _uniform(arm: str) -> bool:
    return arm.partition("@")[0].partition("-")[0] == "uniform"


def _less(held: int, other: int) -> str:
    share = held / other - 1 if other else 0.0
    if abs(share) < 0.005:
        return "as much as"
    return f"{abs(share):.0%} {'less' if share < 0 else 'more'} than"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _are(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "0.001"
