"""Sections of a study's page about the study itself: ranges, what was stopped, what it took, and how to repeat it."""

from __future__ import annotations

import shlex

from autoembed.study.results.retrain import ARMS
from autoembed.study.show.study_page.charts import bar
from autoembed.study.show.study_page.facts import StudyFacts, versions
from autoembed.study.show.study_page.markup import Html, code, details, join, prose, table, tag
from autoembed.study.show.tables import legible
from autoembed.task import titled

_KINDS = 30  # of reasons
_ROUGH = 20  # trials below which importance is rough


def importance(facts: StudyFacts) -> Html | None:
    """How much of the objective's variance each range accounts for, by arm."""
    if not facts.importance:
        return None
    few = min(one.trials for one in facts.importance.values()) < _ROUGH
    note = (
        f"The share of the variance of {titled(facts.board.metric)} over an arm's trials that a range accounts for "
        "(fANOVA), of ranges that every trial drew."
        + (f" With fewer than {_ROUGH} trials an arm this is a rough guide." if few else "")
    )
    parts: list[object] = [prose(note, quiet=True)]
    for arm, one in facts.importance.items():
        rows = [
            [code(name), f"{share:.0%}", tag("span", bar(share, 1.0), class_="text")]
            for name, share in one.shares.items()
        ]
        parts += [
            tag("h3", f"{legible(arm)}, {one.trials} trials"),
            table(f"ranges of {arm}", ["range", "share", ""], rows),
        ]
    return join(parts)


def stopped(facts: StudyFacts) -> Html:
    """Trials that were stopped or failed, equal reasons together."""
    ended = [one for one in facts.ended if one.state != "done"]
    if not ended:
        return tag("p", f"Nothing: all {len(facts.ended)} trials ended well.")
    kinds: dict[tuple[str, str, str], list[str]] = {}
    example: dict[tuple[str, str, str], str] = {}
    for one in ended:
        kind = (one.arm, one.state, one.reason if one.state == "failed" else one.reason.partition(":")[0])
        kinds.setdefault(kind, []).append(one.id)
        example.setdefault(kind, one.reason)
    ordered = sorted(kinds, key=lambda kind: -len(kinds[kind]))
    words = {"pruned": "stopped", "failed": "failed"}
    rows = [
        [legible(kind[0]), words[kind[1]], len(kinds[kind]), kinds[kind][0],
         tag("span", legible(example[kind], 400), class_="say")] for kind in ordered[:_KINDS]
    ]  # fmt: skip
    counts = {state: sum(one.state == state for one in ended) for state in words}
    said = f"Of {len(facts.ended)} trials {counts['pruned']} were stopped early and {counts['failed']} failed."
    listed = table("stopped and failed trials", ["arm", "how", "trials", "such as", "why"], rows, left=5)
    return join([tag("p", said), listed])


def costs(facts: StudyFacts) -> Html:
    """Seconds of searching and retraining by arm, over the trials that ended well."""
    rows = []
    for arm in facts.space.arms():
        own = [trial.result for trial in facts.trials if trial.arm == arm]
        search, retrain = (sum(getattr(one, name) for one in own) for name in ("search_seconds", "retrain_seconds"))
        each = (search + retrain) / len(own) if own else 0.0
        rows.append([legible(arm), len(own), _time(search), _time(retrain), _time(each)])
    parts: list[object] = [
        prose(facts.board.note) if facts.board.note else None,
        table("costs", ["arm", "trials that ended well", "searching", "retraining", "each trial"], rows),
    ]
    if facts.seconds is not None:
        parts.append(
            tag("p", f"From the first to the last report of a trial: {_time(facts.seconds)}, pauses included.")
        )
    if facts.arms is not None:
        took = sum(row["seconds"] for one in facts.arms["arms"].values() for row in one["seeds"])
        parts.append(tag("p", f"Retraining over seeds took {_time(took)}."))
    notes = dict.fromkeys(note for trial in facts.champions.values() for note in trial.result.notes)
    if notes:
        parts += [tag("h3", "Notes of the best trials"), tag("ul", *(tag("li", legible(note, 400)) for note in notes))]
    return join(parts)


def repeat(facts: StudyFacts) -> Html:
    """Commands, data, seed and versions."""
    run, data = facts.run, facts.data
    words = ["autoembed", "search", str(run.space), "--name", f"{run.name}-again"]
    if data.get("data"):
        words += ["--data", str(data["data"])]
    commands = [
        shlex.join(words),
        shlex.join(["autoembed", "show", str(run.path)]),
        shlex.join(["autoembed", "export", str(run.path), f"{run.name}-model"]),
    ]
    if facts.arms is not None:
        seeds = len(next(iter(facts.arms["arms"].values()))["seeds"])
        commands.append(shlex.join(["autoembed", "retrain", str(run.path), "--trial", "all", "--seeds", str(seeds)]))
    rows = data.get("rows", {})
    then = facts.study.get("versions") or {"autoembed": facts.study.get("autoembed", "not recorded")}
    known = {
        "data": data.get("source", "not recorded"),
        "rows": ", ".join(f"{split} {number:,}" for split, number in rows.items()) or "not recorded",
        "fingerprint of the data": data.get("fingerprint", "not recorded"),
        "seed": facts.space.seed,
        "device": facts.space.device,
        "commit of the search space's repository": facts.study.get("commit") or "none",
        "the study was run with": ", ".join(f"{name} {one}" for name, one in then.items()),
        "this page was written with": ", ".join(f"{name} {one}" for name, one in versions().items()),
    }
    listed = tag(
        "dl",
        *(
            tag(kind, legible(str(one), 500))
            for pair in known.items()
            for kind, one in zip(("dt", "dd"), pair, strict=True)
        ),
    )
    space = details("The search space as it was run", tag("pre", run.space.read_text(), tabindex="0"))
    over = tag("p", f"Every reading of test over seeds is in {ARMS}.") if facts.arms is not None else None
    return join([tag("pre", "\n".join(commands), tabindex="0"), listed, over, space])


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
