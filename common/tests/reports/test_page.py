"""Blocks of a page in HTML and in Markdown, and that nothing from outside gets through as markup."""

import pytest

from common.reports.page import Cards, Figure, Gallery, Heading, Panels, Paragraph, Picture, Table, write_page

HOSTILE = "<b>&amp; | `x` [a](b) *i* _u_ $y$\n# z \\ \x07\ud800"
SHOWN = r"&lt;b&gt;&amp;amp; \| \`x\` \[a\](b) \*i\* \_u\_ \$y\$ \# z \\  "


@pytest.fixture
def written(tmp_path):
    """HTML and Markdown of blocks."""

    def write(*blocks):
        path = write_page(tmp_path / "page.html", "title & more", blocks)
        assert path == tmp_path / "page.html"
        return path.read_text("utf-8"), path.with_suffix(".md").read_text("utf-8")

    return write


def test_headings_and_paragraphs(written):
    page, text = written(
        Heading(1, "Run"), Heading(3, "Part"), Paragraph("small"), Paragraph("look & see", kind="warning")
    )
    assert "<title>title &amp; more</title>" in page
    assert '<h1>Run</h1>\n<h3>Part</h3>\n<p class="note">small</p>\n<p class="warning">look &amp; see</p>' in page
    assert text == "# Run\n\n### Part\n\nsmall\n\n**Warning:** look &amp; see\n"


def test_contents_lead_to_the_sections(written):
    page, text = written(
        Heading(1, "Run"), Heading(2, "A & b"), Heading(3, "Part"), Heading(2, "A / b"), Heading(2, "Settings")
    )
    links = '<a href="#a---b">A &amp; b</a>', '<a href="#a---b-1">A / b</a>', '<a href="#settings">Settings</a>'
    contents = f'<nav aria-label="Contents"><ul>{"".join(f"<li>{link}</li>" for link in links)}</ul></nav>'
    assert f'<h1>Run</h1>\n{contents}\n<h2 id="a---b">A &amp; b</h2>' in page
    assert '<h2 id="a---b-1">A / b</h2>\n<h2 id="settings">Settings</h2>' in page
    assert text.startswith("# Run\n\n## A"), "whatever shows Markdown has an outline of its own"
    assert "<nav" not in written(Heading(1, "Run"), Heading(2, "Alone"))[0]


def test_cards(written):
    page, text = written(Cards({"steps": "1,000", "loss": "0.5"}))
    assert "<div><dt>steps</dt><dd>1,000</dd></div><div><dt>loss</dt><dd>0.5</dd></div>" in page
    assert text == "- steps: 1,000\n- loss: 0.5\n"


def test_tables(written):
    page, text = written(
        Table(["set", "EER"], [["lfw", "1 %"], ["pixels", "2 %"]], faint=frozenset({1})),
        Table((), [["head.scale", "64"]], kind="settings"),
    )
    assert '<thead><tr><th scope="col">set</th><th scope="col">EER</th></tr></thead>' in page
    assert '<tbody><tr><th scope="row">lfw</th><td data-label="EER">1 %</td></tr>' in page
    assert '<tr class="faint"><th scope="row">pixels</th>' in page
    assert page.count('<tr class="faint">') == 1
    assert '<table class="settings"><tbody><tr><th scope="row">head.scale</th><td>64</td></tr>' in page
    first, second = text.split("\n\n")
    assert first == "| set | EER |\n| --- | ---: |\n| lfw | 1 % |\n| pixels | 2 % |"
    assert second == "| setting | value |\n| --- | --- |\n| head.scale | 64 |\n"


def test_figures_are_inside_the_page_and_beside_the_markdown(written, tmp_path):
    page, text = written(
        Figure("roc", "the curve", b"<svg/>"),
        Panels([Figure("det-1", "one", b"<svg>1</svg>"), Figure("det-2", "two", b"<svg>2</svg>")]),
        Gallery([Picture("lfw-same-1", "pair 7", b"jpeg 1"), Picture("lfw-same-2", "pair 9", b"jpeg 2")]),
    )
    assert '<figure class="plot"><img src="data:image/svg+xml;base64,PHN2Zy8+" alt="the curve"></figure>' in page
    assert page.count('<div class="panels"><figure class="plot"><img src="data:') == 1
    assert 'alt="one"></figure><figure class="plot"><img src=' in page
    assert '<img src="data:image/jpeg;base64,anBlZyAx" alt=""><figcaption>pair 7</figcaption>' in page
    assert (
        "![the curve](page_figures/roc.svg)\n\n![one](page_figures/det-1.svg)\n![two](page_figures/det-2.svg)" in text
    )
    assert "| ![](page_figures/lfw-same-2.jpg) | pair 9 |" in text
    found = {path.name: path.read_bytes() for path in (tmp_path / "page_figures").iterdir()}
    pictures = {"lfw-same-1.jpg": b"jpeg 1", "lfw-same-2.jpg": b"jpeg 2"}
    assert found == {"roc.svg": b"<svg/>", "det-1.svg": b"<svg>1</svg>", "det-2.svg": b"<svg>2</svg>", **pictures}


def test_a_page_without_figures_makes_no_folder(written, tmp_path):
    written(Heading(1, "x"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "page.md"]


@pytest.mark.parametrize(
    "block",
    [
        Heading(2, HOSTILE),
        Paragraph(HOSTILE),
        Cards({HOSTILE: HOSTILE}),
        Table([HOSTILE, "b"], [[HOSTILE, HOSTILE]]),
        Gallery([Picture("x", HOSTILE, b"")]),
        Figure("x", HOSTILE, b""),
    ],
    ids=lambda block: type(block).__name__,
)
def test_text_is_shown_not_followed(written, block):
    page, text = written(block)
    assert "<b>" not in page.partition("<body>")[2]
    assert "&lt;b&gt;&amp;amp; | `x`" in page
    assert SHOWN.rstrip() in text
    assert "\n# z" not in text
    assert "<b>" not in text


def test_names_of_figures_stay_in_their_folder(written, tmp_path):
    _, text = written(Figure("../../é v/x)", "", b"x"))
    assert [path.name for path in (tmp_path / "page_figures").iterdir()] == ["..-..---v-x-.svg"]
    assert "(page_figures/..-..---v-x-.svg)" in text
