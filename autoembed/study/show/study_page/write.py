"""A study's page: gathered, put together and written as one file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from autoembed.study.show.report import PAGE
from autoembed.study.show.study_page import account, columns, results
from autoembed.study.show.study_page.facts import StudyFacts, gather
from autoembed.study.show.study_page.markup import Html, page, prose, tag
from autoembed.study.show.study_page.verdict import verdict
from autoembed.study.show.tables import legible
from autoembed.writing import beside

if TYPE_CHECKING:
    import polars as pl

    from autoembed.space import SearchSpace
    from autoembed.study.run_dir import RunDir

# (id, title, what writes it); a section that has nothing to say is left out.
_SECTIONS = (
    ("arms", "Arms", results.leaderboard),
    ("bytes", "Quality and bytes", results.plot),
    ("architecture", "The best architecture", results.heatmap),
    ("columns", "Ranking of columns", columns.ranking),
    ("brought", "What each column brings", columns.brought),
    ("curves", "Curves", results.training),
    ("ranges", "Which ranges matter", account.importance),
    ("stopped", "Stopped and failed", account.stopped),
    ("costs", "Costs", account.costs),
    ("repeat", "How to repeat it", account.repeat),
)


def write_report(
    run: RunDir, space: SearchSpace, out: Path | None = None, explained: pl.DataFrame | None = None
) -> Path:
    """Writes a study's page and returns its path.

    Args:
        run: the study's folder.
        space: what was searched.
        out: the file; report.html in the folder by default.
        explained: as in `gather`.
    """
    target = out or run.path / PAGE
    content = render(gather(run, space, explained))
    with beside(target) as temporary:
        temporary.write_text(content, encoding="utf-8")
    return target


def render(facts: StudyFacts) -> Html:
    """The page of a study."""
    said = (prose(sentence) for sentence in verdict(facts.board, facts.arms, facts.plain))
    head = tag("div", tag("h1", legible(facts.run.name)), tag("div", *said, class_="verdict"))
    found = [(name, title, write(facts)) for name, title, write in _SECTIONS]
    return page(facts.run.name, head, [(name, title, one) for name, title, one in found if one is not None])
