"""Pages of headings, tables, figures and pictures. Each is written as one HTML file without scripts or links, and as
Markdown with its figures beside it."""

import base64
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Literal, NamedTuple

from common.io.files import atomic_write

HTML = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light; }}
body {{ font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; color: #222;
  background: #fff; max-width: 1100px; margin: 2.5rem auto; padding: 0 1.25rem; }}
h1 {{ font-size: 1.7rem; margin: 0; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.15rem; margin: 2.5rem 0 .6rem; padding-bottom: .25rem; border-bottom: 2px solid #0072B2; }}
h3 {{ font-size: .95rem; margin: 1.2rem 0 .3rem; }}
p {{ margin: .4rem 0; }}
.note {{ color: #595959; font-size: .87rem; overflow-wrap: anywhere; }}
.warning {{ background: #fff4e5; border-left: 4px solid #D55E00; padding: .5rem .8rem; overflow-wrap: anywhere; }}
.cards {{ display: flex; flex-wrap: wrap; gap: .6rem; margin: 1.2rem 0; padding: 0; }}
.cards div {{ background: #f4f6f8; border-radius: 6px; padding: .5rem .9rem; }}
.cards dt {{ color: #595959; font-size: .8rem; }}
.cards dd {{ margin: 0; font-size: 1.15rem; font-weight: 600; font-variant-numeric: tabular-nums; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .35rem .5rem; border-bottom: 1px solid #e3e3e3; text-align: right; white-space: nowrap; }}
th {{ font-weight: 600; font-size: .82rem; line-height: 1.3; color: #444; white-space: normal;
  vertical-align: bottom; }}
th:first-child, td:first-child, .settings td, .settings th {{ text-align: left; }}
tr.faint td {{ color: #666; }}
.settings td {{ white-space: normal; overflow-wrap: anywhere; font-family: ui-monospace, Menlo, Consolas, monospace;
  font-size: .83rem; vertical-align: top; }}
.settings td:first-child {{ width: 35%; color: #444; }}
figure {{ margin: 0; }}
figure img {{ max-width: 100%; height: auto; }}
.gallery {{ display: flex; flex-wrap: wrap; gap: .7rem 1rem; }}
.gallery figcaption {{ color: #595959; font-size: .78rem; line-height: 1.3; max-width: 164px; }}
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


class Picture(NamedTuple):
    """A small JPEG with a caption; `name` as in `Figure`."""

    name: str
    caption: str
    jpeg: bytes


class Gallery(NamedTuple):
    """Pictures side by side."""

    pictures: Sequence[Picture]


Block = Heading | Paragraph | Cards | Table | Figure | Gallery


def write_page(path: Path, title: str, blocks: Sequence[Block]) -> Path:
    """Write path (.html), the same page as .md, and the figures of the .md in a folder NAME_figures.

    Args:
        path: ends in .html.
        title: of the HTML document.
        blocks: from top to bottom. All texts are escaped, since they may come from outside.

    Returns:
        `path`.
    """
    folder = path.with_name(f"{path.stem}_figures")
    for name, content in _files(blocks).items():
        with atomic_write(folder / name) as file:
            file.write(content)
    body = "\n".join(_html(block) for block in blocks)
    text = "\n\n".join(_markdown(block, folder.name) for block in blocks) + "\n"
    for target, page in ((path, HTML.format(title=escape(title), body=body)), (path.with_suffix(".md"), text)):
        with atomic_write(target) as file:
            # Names may hold lone surrogates, from JSON or from file names that are not UTF-8.
            file.write(page.encode("utf-8", "replace"))
    return path


def _files(blocks: Sequence[Block]) -> dict[str, bytes]:
    figures = {f"{_safe(block.name)}.svg": block.svg for block in blocks if isinstance(block, Figure)}
    galleries = [block for block in blocks if isinstance(block, Gallery)]
    return figures | {f"{_safe(one.name)}.jpg": one.jpeg for gallery in galleries for one in gallery.pictures}


def _html(block: Block) -> str:
    match block:
        case Heading(level, text):
            return f"<h{level}>{escape(text)}</h{level}>"
        case Paragraph(text, kind):
            return f'<p class="{kind}">{escape(text)}</p>'
        case Cards(figures):
            items = "".join(f"<div><dt>{escape(n)}</dt><dd>{escape(v)}</dd></div>" for n, v in figures.items())
            return f'<dl class="cards">{items}</dl>'
        case Table():
            return _html_table(block)
        case Figure(_, description, svg):
            return f"<figure>{_image('svg+xml', svg, description)}</figure>"
        case Gallery(pictures):
            items = "".join(
                f"<figure>{_image('jpeg', one.jpeg, '')}<figcaption>{escape(one.caption)}</figcaption></figure>"
                for one in pictures
            )
            return f'<div class="gallery">{items}</div>'


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.head)
    rows = []
    for number, row in enumerate(table.rows):
        kind = ' class="faint"' if number in table.faint else ""
        rows.append(f"<tr{kind}>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>")
    kind = ' class="settings"' if table.kind == "settings" else ""
    head = f"<thead><tr>{head}</tr></thead>" if table.head else ""
    return f'<div class="wide"><table{kind}>{head}<tbody>{"".join(rows)}</tbody></table></div>'


def _image(kind: str, content: bytes, description: str) -> str:
    encoded = base64.b64encode(content).decode("ascii")
    return f'<img src="data:image/{kind};base64,{encoded}" alt="{escape(description)}">'


def _markdown(block: Block, folder: str) -> str:
    match block:
        case Heading(level, text):
            return "#" * level + " " + _plain(text)
        case Paragraph(text, kind):
            return ("**Warning:** " if kind == "warning" else "") + _plain(text)
        case Cards(figures):
            return "\n".join(f"- {_plain(name)}: {_plain(value)}" for name, value in figures.items())
        case Table(head, rows):
            head = head or ["setting", "value"]
            rule = "---" if block.kind == "settings" else "---:"
            cells = [[_plain(cell) for cell in row] for row in (head, *rows)]
            return markdown_table(cells[0], cells[1:], rule)
        case Figure(name, description, _):
            return f"![{_plain(description)}]({folder}/{_safe(name)}.svg)"
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
