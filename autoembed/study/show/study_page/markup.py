"""HTML from Python in which every text is escaped, and the frame of a page that needs nothing from outside."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from autoembed.study.show.study_page.style import STYLE
from autoembed.study.show.tables import legible

_VOID = {"meta", "br"}
# Nothing is loaded and no script runs, whatever a stranger's column is called.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


class Html(str):
    """Text that is markup already. Any other text is escaped where it is put into a page."""

    __slots__ = ()


def text(content: object, longest: int = 10_000) -> Html:
    """Plain text as markup: escaped, and signs that cannot be printed or that turn the line around are spelt out."""
    if isinstance(content, Html):
        return content
    lines = (legible(line, longest) for line in str(content).split("\n"))
    return Html(html.escape("\n".join(lines), quote=True))


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """An element; None among the children and attributes is left out, `class_` and `aria_label` are written as HTML
    has them."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Html(f"<{name}{given}>")
    return Html(f"<{name}{given}>{join(children)}</{name}>")


def join(parts: Iterable[object]) -> Html:
    """Parts one after the other, without those that are None."""
    return Html("".join(text(part) for part in parts if part is not None))


def code(content: object) -> Html:
    """A name from the data or the search space."""
    return tag("code", text(content, 120), title=text(content, 400))


def prose(content: str, *, quiet: bool = False) -> Html:
    """A paragraph; what stands between backticks is code. `quiet` ones say how to read a figure."""
    parts = (tag("code", part) if place % 2 else text(part) for place, part in enumerate(content.split("`")))
    return tag("p", *parts, class_="mute" if quiet else None)


def scroll(content: object, label: str) -> Html:
    """What may be wider than the screen: it scrolls for itself, with the keyboard too."""
    return tag("div", content, class_="scroll", tabindex="0", role="region", aria_label=label)


def table(
    label: str, heads: Sequence[object], rows: Iterable[Sequence[object]], *, left: int = 1, best: int = -1
) -> Html:
    """A table whose first `left` columns are flush left and whose row number `best` stands out.

    `label` names it for those who do not see it.
    """
    head = tag("tr", *(tag("th", one, scope="col", class_="text" if n < left else None) for n, one in enumerate(heads)))
    body = []
    for number, row in enumerate(rows):
        cells: list[Html] = []
        for place, cell in enumerate(row):
            kind = "text" if place < left else None
            first = place == 0
            cells.append(tag("th" if first else "td", cell, class_=kind, scope="row" if first else None))
        body.append(tag("tr", *cells, class_="best" if number == best else None))
    return scroll(tag("table", tag("thead", head), tag("tbody", *body)), label)


def details(summary: str, *content: object) -> Html:
    """What is shown on request."""
    return tag("details", tag("summary", summary), *content)


def section(name: str, title: str, *content: object) -> Html:
    return tag("section", tag("h2", title), *content, id=name)


def page(title: str, head: object, sections: Sequence[tuple[str, str, Html]]) -> Html:
    """A whole page: `sections` are (id, title, content), listed at its top."""
    links = [tag("li", tag("a", title, href=f"#{name}")) for name, title, _ in sections]
    body = tag(
        "body",
        tag("a", "to the content", href="#main", class_="skip"),
        tag("header", head, tag("nav", tag("ul", *links), aria_label="sections")),
        tag("main", *(section(*one) for one in sections), id="main"),
    )
    first = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        Html(f"<style>{STYLE}</style>"),
    )
    return Html(f"<!doctype html>\n{tag('html', first, body, lang='en')}\n")
