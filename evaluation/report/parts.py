"""What the pages are made of, as HTML: tables, pictures, names with colours."""

import datetime
import re
from collections.abc import Iterable, Sequence
from itertools import cycle

from projects.SegFormer.engine.json_lines import is_number
from projects.SegFormer.evaluation.report.charts import COLOURS, text
from projects.SegFormer.evaluation.report.record import VIEWS, Evaluated, Picture
from projects.SegFormer.evaluation.report.run import Run
from projects.SegFormer.evaluation.report.style import STYLE

OPEN_CLASSES = 40  # up to which long lists of classes are unfolded

Row = Sequence[str]  # cells of HTML


def swatch(colour: Sequence[int] | None) -> str:
    """A box in a colour, or hatched for what is of no class."""
    if colour is None:
        return '<i class="swatch none"></i>'
    return f'<i class="swatch" style="background:rgb({",".join(map(str, colour))})"></i>'


def duration(seconds: float) -> str:
    """As 0:25:32."""
    return str(datetime.timedelta(seconds=round(min(max(seconds, 0), 1e9))))


def document(title: str, header: Iterable[str], sections: dict[str, str]) -> str:
    """The whole file; sections by name, without those that are empty."""
    sections = {name: body for name, body in sections.items() if body}
    marks = {name: re.sub(r"\W+", "-", name.lower()) for name in sections}
    links = "".join(f'<a href="#{mark}">{name}</a>' for name, mark in marks.items())
    bodies = "".join(
        f'<section id="{marks[name]}"><h2>{name}</h2>{body}</section>'
        for name, body in sections.items()
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head>\n"
        f"<body><header>{''.join(header)}<nav>{links}</nav></header>\n<main>{bodies}</main></body>"
        "</html>\n"
    )


def table(head: Row, rows: Iterable[Row], kind: str, foot: Iterable[Row] = (), bars=()) -> str:
    """A table in a box that scrolls; a cell of a column of `bars` shows its percent as a bar."""

    def cells(row: Row, marked=()) -> str:
        found = [f'<th scope="row">{row[0]}</th>']
        for name, cell in zip(head[1:], row[1:]):
            is_bar = name in marked and cell[:1].isdigit()
            bar = f' class="bar" style="--w:{cell}%"' if is_bar else ""
            found.append(f"<td{bar}>{cell}</td>")
        return f"<tr>{''.join(found)}</tr>"

    top = "".join(f'<th scope="col">{name}</th>' for name in head)
    top = f"<thead><tr>{top}</tr></thead>" if any(head) else ""
    body = "".join(cells(row, bars) for row in rows)
    end = "".join(map(cells, foot))
    end = f"<tfoot>{end}</tfoot>" if end else ""
    return f'<div class="box"><table class="{kind}">{top}<tbody>{body}</tbody>{end}</table></div>'


def figure(view: str, picture: Picture, title: str = "") -> str:
    """A view of a picture, with its name or another title below."""
    if view not in picture.views:
        return ""
    data = f"data:image/{VIEWS[view]};base64,{text(picture.views[view])}"
    title = text(title or view)
    alt = f"{title} of {text(picture.name)}"
    return f'<figure><img src="{data}" alt="{alt}"><figcaption>{title}</figcaption></figure>'


def class_name(name: str, colours: dict[str, Sequence[int]]) -> str:
    """With its colour, where that is known."""
    return (swatch(colours[name]) if name in colours else "") + text(name)


def legend(evaluated: Evaluated, picture: Picture) -> str:
    """The classes of a picture beside their colours."""
    names, colours = [*evaluated.classes, "ignored"], [*evaluated.palette, None]
    items = [
        f"<li>{swatch(colours[index])}{text(names[index])}</li>" for index, _ in picture.shares
    ]
    return f'<ul class="legend">{"".join(items)}</ul>'


def folded(body: str, length: int) -> str:
    """A long list of classes behind its length."""
    if length <= OPEN_CLASSES:
        return body
    return f"<details><summary>{length} classes</summary>{body}</details>"


def percent(value: object) -> str:
    return f"{value:.2f}" if is_number(value) else "–"


def unique(names: Iterable[str]) -> list[str]:
    """Each once, in their order."""
    return list(dict.fromkeys(names))


def numbered(runs: Sequence[Run]) -> Iterable[tuple[Run, int]]:
    """Each training with the number of its colour."""
    return zip(runs, cycle(range(1, COLOURS + 1)))
