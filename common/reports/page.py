"""Pages of headings, tables, figures and pictures. Each is written as one HTML file without scripts or links to
elsewhere, light or dark as the reader has it, and as Markdown with its figures beside it."""

import base64
import itertools
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Literal, NamedTuple

from common.io.files import atomic_write

LONG = 20
"""Characters of a cell that is not broken into lines; figures are shorter, names may not be."""

HTML = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --page: #fff; --ink: #222; --soft: #595959; --line: #ddd; --card: #f4f6f8;
  --warning: #fff4e5; --link: #005b8f; --shade: #0004; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --page: #1a1a1a; --ink: #e6e6e6; --soft: #b0b0b0; --line: #404040; --card: #262a2e;
    --warning: #3a2a17; --link: #6cb8ea; --shade: #fff4; }}
  .plot img {{ filter: invert(.898) hue-rotate(180deg); }} /* white becomes --page */
}}
body {{ font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; color: var(--ink);
  background: var(--page); max-width: 1160px; margin: 2.5rem auto; padding: 0 1.25rem; }}
h1 {{ font-size: 1.7rem; margin: 0; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.15rem; margin: 2.5rem 0 .6rem; padding-bottom: .25rem; border-bottom: 2px solid #0072B2;
  overflow-wrap: anywhere; }}
h3 {{ font-size: .95rem; margin: 1.2rem 0 .3rem; }}
p {{ margin: .4rem 0; }}
a {{ color: var(--link); overflow-wrap: anywhere; }}
nav ul {{ display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; margin: 1.2rem 0; padding: 0; list-style: none; }}
.note {{ color: var(--soft); font-size: .87rem; overflow-wrap: anywhere; }}
.warning {{ background: var(--warning); border-left: 4px solid #D55E00; padding: .5rem .8rem;
  overflow-wrap: anywhere; }}
.cards {{ display: flex; flex-wrap: wrap; gap: .6rem; margin: 1.2rem 0; padding: 0; }}
.cards div {{ background: var(--card); border-radius: 6px; padding: .5rem .9rem; }}
.cards dt {{ color: var(--soft); font-size: .8rem; }}
.cards dd {{ margin: 0; font-size: 1.15rem; font-weight: 600; font-variant-numeric: tabular-nums;
  overflow-wrap: anywhere; }}
/* A table that is too wide scrolls under its first column; the shadow says that there is more. */
.wide {{ overflow-x: auto; background: linear-gradient(to left, var(--page) 1rem, transparent) right / 2rem 100%
  no-repeat local, linear-gradient(to left, var(--shade), transparent) right / .6rem 100% no-repeat scroll; }}
table {{ font-size: .93rem; border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .35rem .4rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }}
th {{ font-weight: 600; font-size: .82rem; line-height: 1.3; }}
thead th {{ color: var(--soft); white-space: normal; vertical-align: bottom; }}
tbody th {{ font: inherit; white-space: normal; overflow-wrap: anywhere; min-width: 6rem; }}
th:first-child {{ position: sticky; left: 0; background: var(--page); }}
th:first-child, .settings td, .settings th {{ text-align: left; }}
td.long {{ white-space: normal; overflow-wrap: anywhere; min-width: 6rem; }}
tr.faint > * {{ color: var(--soft); }}
.settings tbody > tr > * {{ white-space: normal; overflow-wrap: anywhere; vertical-align: top;
  font: .83rem/1.5 ui-monospace, Menlo, Consolas, monospace; }}
.settings td {{ min-width: 7rem; }}
.settings tbody th {{ width: 35%; min-width: 8rem; color: var(--soft); }}
figure {{ margin: 0; }}
figure img {{ max-width: 100%; height: auto; vertical-align: top; }}
.panels {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(max(40%, min(100%, 360px)), 1fr));
  gap: 1rem 1.5rem; }} /* two at most in a row */
.panels img {{ width: 100%; max-width: 500px; }}
.gallery {{ display: flex; flex-wrap: wrap; gap: .7rem 1rem; }}
.gallery img {{ min-width: 112px; }}
.gallery figcaption {{ color: var(--soft); font-size: .78rem; line-height: 1.3; max-width: 164px;
  overflow-wrap: anywhere; }}
@media (max-width: 900px) {{ /* a row becomes a list, each cell with the head of its column */
  .headed thead {{ display: none; }}
  .headed tr {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 18rem), 1fr)); gap: 0 2rem;
    padding: .4rem 0; border-bottom: 1px solid var(--line); }}
  .headed tbody > tr > * {{ border: 0; padding: .1rem 0; font-size: .83rem; overflow-wrap: anywhere; }}
  .headed tbody th {{ grid-column: 1 / -1; width: auto; font-weight: 600; }}
  .headed td {{ display: flex; justify-content: space-between; gap: 1rem; text-align: right; white-space: normal; }}
  .headed td::before {{ content: attr(data-label); color: var(--soft); text-align: left; flex: 0 0 auto;
    max-width: 50%; }}
}}
@media (max-width: 600px) {{
  body {{ margin: 1rem auto; padding: 0 .8rem; }}
  .settings tbody > tr > * {{ font-size: .75rem; }}
  .settings tbody th {{ min-width: 11.3rem; }}
}}
</style>
</head>
<body>
{body}
</body>
</html>
"""


class Heading(NamedTuple):
    """Level 1 is the title of the page."""

    level: Literal[1, 2, 3]
    text: str


class Paragraph(NamedTuple):
    """A note is smaller, a warning stands out."""

    text: str
    kind: Literal["note", "warning"] = "note"


class Cards(NamedTuple):
    """A few figures in large type, by their names."""

    figures: Mapping[str, str]


class Table(NamedTuple):
    """Rows as wide as `head`; faint ones are grey. Settings have monospaced cells, which may be long."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    faint: frozenset[int] = frozenset()
    kind: Literal["figures", "settings"] = "figures"


class Figure(NamedTuple):
    """An SVG; `name` becomes the name of a file beside the Markdown."""

    name: str
    description: str
    svg: bytes


class Panels(NamedTuple):
    """Figures side by side, as many as fit."""

    figures: Sequence[Figure]


class Picture(NamedTuple):
    """A small JPEG with a caption; `name` as in `Figure`."""

    name: str
    caption: str
    jpeg: bytes


class Gallery(NamedTuple):
    """Pictures side by side."""

    pictures: Sequence[Picture]


Block = Heading | Paragraph | Cards | Table | Figure | Panels | Gallery


def write_page(path: Path, title: str, blocks: Sequence[Block]) -> Path:
    """Write path (.html), the same page as .md, and the figures of the .md in a folder NAME_figures.

    Args:
        path: ends in .html.
        title: of the HTML document.
        blocks: from top to bottom. All texts are escaped, since they may come from outside. The HTML page has links to
            its headings of level 2, above the first one.

    Returns:
        `path`.
    """
    folder = path.with_name(f"{path.stem}_figures")
    for name, content in _files(blocks).items():
        with atomic_write(folder / name) as file:
            file.write(content)
    text = "\n\n".join(_markdown(block, folder.name) for block in blocks) + "\n"
    for target, page in ((path, html_page(title, blocks)), (path.with_suffix(".md"), text)):
        write_text(target, page)
    return path


def html_page(title: str, blocks: Sequence[Block]) -> str:
    """One HTML file with all its pictures; the arguments are those of `write_page`."""
    return HTML.format(title=escape(title), body="\n".join(_html_with_contents(blocks)))


def write_text(path: Path, page: str) -> None:
    """Write a page, atomically. Names in it may hold lone surrogates, as file names that are not UTF-8 do."""
    with atomic_write(path) as file:
        file.write(page.encode("utf-8", "replace"))


def _files(blocks: Sequence[Block]) -> dict[str, bytes]:
    panels = [figure for block in blocks if isinstance(block, Panels) for figure in block.figures]
    alone = [block for block in blocks if isinstance(block, Figure)]
    figures = {f"{_safe(figure.name)}.svg": figure.svg for figure in (*alone, *panels)}
    galleries = [block for block in blocks if isinstance(block, Gallery)]
    return figures | {f"{_safe(one.name)}.jpg": one.jpeg for gallery in galleries for one in gallery.pictures}


def _html_with_contents(blocks: Sequence[Block]) -> list[str]:
    """Each block; a page of several sections has links to them above the first."""
    anchors: dict[str, str] = {}
    parts = []
    for block in blocks:
        if isinstance(block, Heading) and block.level == 2:
            anchor = _safe(block.text).lower()
            anchor += f"-{len(anchors)}" if anchor in anchors else ""
            anchors[anchor] = block.text
            parts.append(f'<h2 id="{anchor}">{escape(block.text)}</h2>')
        else:
            parts.append(_html(block))
    if len(anchors) > 1:
        links = "".join(f'<li><a href="#{anchor}">{escape(text)}</a></li>' for anchor, text in anchors.items())
        first = next(place for place, part in enumerate(parts) if part.startswith("<h2"))
        parts.insert(first, f'<nav aria-label="Contents"><ul>{links}</ul></nav>')
    return parts


def _html(block: Block) -> str:
    match block:
        case Heading(level, text):
            return f"<h{level}>{escape(text)}</h{level}>"
        case Paragraph(text, kind):
            return f'<p class="{kind}">{escape(text)}</p>'
        case Cards(cards):
            items = "".join(f"<div><dt>{escape(n)}</dt><dd>{escape(v)}</dd></div>" for n, v in cards.items())
            return f'<dl class="cards">{items}</dl>'
        case Table():
            return _html_table(block)
        case Figure(_, description, svg):
            return f'<figure class="plot">{_image("svg+xml", svg, description)}</figure>'
        case Panels(figures):
            return f'<div class="panels">{"".join(map(_html, figures))}</div>'
        case Gallery(pictures):
            items = "".join(
                f"<figure>{_image('jpeg', one.jpeg, '')}<figcaption>{escape(one.caption)}</figcaption></figure>"
                for one in pictures
            )
            return f'<div class="gallery">{items}</div>'


def _html_table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.head)
    labels = [f' data-label="{escape(label)}"' for label in table.head[1:]]  # where a row becomes a list
    rows = []
    for number, row in enumerate(table.rows):
        kind = ' class="faint"' if number in table.faint else ""
        labelled = itertools.zip_longest(labels, row[1:], fillvalue="")
        cells = "".join(_html_cell(cell, label) for label, cell in labelled)
        rows.append(f'<tr{kind}><th scope="row">{escape(row[0])}</th>{cells}</tr>')
    body = f"<tbody>{''.join(rows)}</tbody>"
    if table.head:
        body = f"<thead><tr>{head}</tr></thead>{body}"
    kind = f"{table.kind} headed" if table.head else table.kind
    return f'<div class="wide" tabindex="0"><table class="{kind}">{body}</table></div>'


def _html_cell(text: str, label: str) -> str:
    kind = ' class="long"' if len(text) > LONG else ""
    return f"<td{label}{kind}>{escape(text)}</td>"


def _image(kind: str, content: bytes, description: str) -> str:
    encoded = base64.b64encode(content).decode("ascii")
    return f'<img src="data:image/{kind};base64,{encoded}" alt="{escape(description)}">'


def _markdown(block: Block, folder: str) -> str:
    match block:
        case Heading(level, text):
            return "#" * level + " " + _plain(text)
        case Paragraph(text, kind):
            return ("**Warning:** " if kind == "warning" else "") + _plain(text)
        case Cards(cards):
            return "\n".join(f"- {_plain(name)}: {_plain(value)}" for name, value in cards.items())
        case Table(head, rows):
            head = head or ["setting", "value"]
            rule = "---" if block.kind == "settings" else "---:"
            cells = [[_plain(cell) for cell in row] for row in (head, *rows)]
            return markdown_table(cells[0], cells[1:], rule)
        case Figure(name, description, _):
            return f"![{_plain(description)}]({folder}/{_safe(name)}.svg)"
        case Panels(figures):
            return "\n".join(_markdown(figure, folder) for figure in figures)
        case Gallery(pictures):
            rows = [[f"![]({folder}/{_safe(one.name)}.jpg)", _plain(one.caption)] for one in pictures]
            return markdown_table(["pair", ""], rows)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], rule: str = "---") -> str:
    """A Markdown table of cells that are escaped already; `rule` aligns all columns but the first."""
    lines = (head, ["---", *[rule] * (len(head) - 1)], *rows)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _plain(text: str) -> str:
    """Text escaped for Markdown: no markup, no HTML, no end of a line or of a cell."""
    printable = "".join(character if character.isprintable() else " " for character in text)
    return re.sub(r"([\\`*_\[\]|~$#!])", r"\\\1", escape(printable, quote=False))


def _safe(name: str) -> str:
    """A name from outside, as part of a file name and of a link."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", name)
