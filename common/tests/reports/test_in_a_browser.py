"""Pages as a reader sees them: in Chromium, at three widths, light and dark. Skipped where there is no Chromium."""

import dataclasses
import json
from itertools import product

import cv2
import numpy as np
import pytest

from common.config import to_json
from common.datasets.images import encode_image
from common.datasets.pair_sets import write_pair_set
from common.evaluation.results import save_evaluation
from common.recipes import lfw_small
from common.reports.comparison import write_comparison
from common.reports.run_report import write_report
from common.tests.reports.browser import CHROMIUM, MISSING, SCHEMES, WIDTHS, browser
from common.tests.reports.made_runs import add_evaluations, evaluation, make_run, train_line, write_log
from common.tests.reports.test_angle_plot import record

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason=MISSING)]

LONG = "a-run-of-another-machine-with-all-that-was-changed-in-it-named-in-its-folder_and_then_some"

# What reaches beyond the window, or is cut by a box that does not scroll; a table may scroll in its box.
TOO_WIDE = """[...document.body.querySelectorAll('*')].filter(one => {
    const edge = (one.parentElement.closest('.wide') || document.documentElement).getBoundingClientRect()
    const scrolls = one.closest('.wide') && one.closest('.wide').scrollWidth > one.closest('.wide').clientWidth
    return one.scrollWidth > one.clientWidth + 1 && one.clientWidth && getComputedStyle(one).overflowX != 'auto'
        || !scrolls && one.getBoundingClientRect().right > edge.right + 1
}).map(one => one.outerHTML.slice(0, 200)).concat(
    document.scrollingElement.scrollWidth > innerWidth ? ['the page'] : [])"""

# Tables that a reader must scroll sideways.
SCROLLED = """[...document.querySelectorAll('.wide')].filter(one => one.scrollWidth > one.clientWidth)
    .map(one => one.textContent.slice(0, 80))"""

# The contrast of each text to what it stands on, as WCAG 2 defines it (relative luminance), with the text.
CONTRASTS = """(() => {
    const light = colour => {
        const [r, g, b] = colour.match(/[\\d.]+/g).map(v => v / 255).map(
            v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b
    }
    const ground = one => {
        const colour = one ? getComputedStyle(one).backgroundColor : 'rgb(255, 255, 255)'
        return colour == 'rgba(0, 0, 0, 0)' ? ground(one.parentElement) : colour
    }
    const styles = [...document.body.querySelectorAll('*')].filter(
        one => [...one.childNodes].some(node => node.nodeType == 3 && node.data.trim())).flatMap(
        one => [[one, null], ...(one.dataset.label ? [[one, '::before']] : [])])
    return styles.map(([one, part]) => {
        const pair = [light(getComputedStyle(one, part).color), light(ground(one))].sort((a, b) => b - a)
        return [(pair[0] + 0.05) / (pair[1] + 0.05), one.textContent.slice(0, 60)]
    })
})()"""

# Of each figure: the least size of a letter in pixels of the screen, as it is shown, and texts beyond its edges.
FIGURES = """Promise.all([...document.querySelectorAll('.plot img')].map(async image => {
    const source = await (await fetch(image.src)).text()
    const holder = document.createElement('div')
    holder.style.cssText = `position: absolute; left: 0; top: 0; width: ${image.width}px`
    holder.innerHTML = source.slice(source.indexOf('<svg'))
    document.body.append(holder)
    const figure = holder.firstChild
    figure.style.cssText = 'width: 100%; height: auto'
    const edge = figure.getBoundingClientRect()
    const texts = [...figure.querySelectorAll('[id^=text_]')].map(text => text.getBoundingClientRect())
    const cut = texts.filter(one => one.left < edge.left - 1 || one.right > edge.right + 1
        || one.top < edge.top - 1 || one.bottom > edge.bottom + 1).length
    const scale = edge.width / figure.viewBox.baseVal.width
    holder.remove()
    return {name: image.alt, texts: texts.length, cut, size: 8 * scale, width: image.width}
}))"""


@pytest.fixture(scope="module")
def chromium():
    with browser() as one:
        yield one


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A report with each kind of block, and a comparison of three runs, one of them with a long name."""
    folder = tmp_path_factory.mktemp("pages")
    sets = folder / "a folder of evaluation sets"
    runs = [make_run(folder / name) for name in ("orl-seed0", "orl-seed1", LONG)]
    for number, run in enumerate(runs):
        add_evaluations(run)
        config = lfw_small()
        data = dataclasses.replace(config.data, root=sets)
        config = dataclasses.replace(config, seed=number, angle_images=10 + number, data=data)
        (run / "config.json").write_text(json.dumps(to_json(config)))
        backend = {"name": "pytorch", "device": "cpu", "threads": 1 + number}
        command = [f"--an-option-{place}" for place in range(20)]
        environment = {"command": command, "machine": f"Linux-{number}", "backend": backend}
        (run / "environment.json").write_text(json.dumps(environment))
    write_log(runs[0], [*(train_line(step, lr=0.1 if step < 50 else 0.01) for step in range(1, 100)), record(50)])
    save_evaluation(runs[0] / "evaluation", evaluation(f"set-{LONG}"), 100)
    issame = evaluation("lfw").result.issame
    images = np.random.default_rng(0).integers(0, 256, (2 * len(issame), 3, 16, 16), np.uint8)
    write_pair_set(sets / "lfw.bin", map(encode_image, images), issame)
    (runs[0] / "evaluation" / "cfp_fp.json").write_text("{")  # a warning
    return {"report": write_report(runs[0]), "comparison": write_comparison(runs, folder / "out")}


@pytest.fixture(scope="module", params=["report", "comparison"])
def page(request, pages, chromium):
    chromium.open(pages[request.param])
    return chromium


@pytest.mark.parametrize(("width", "scheme"), list(product(WIDTHS, SCHEMES)))
def test_a_page_is_whole_and_readable(page, width, scheme):
    page.show(width, scheme)
    assert page.ask("innerWidth") == width
    assert page.ask(TOO_WIDE) == []
    assert page.ask(SCROLLED) == []
    contrast, text = min(contrasts := page.ask(CONTRASTS))
    assert len(contrasts) > 50
    assert contrast >= 4.5, text
    picture = cv2.imdecode(np.frombuffer(page.screenshot(), np.uint8), cv2.IMREAD_GRAYSCALE)
    assert picture.shape[1] == width
    ground = np.bincount(picture.ravel()).argmax()
    assert ground == {"light": 255, "dark": 0x1A}[scheme]
    assert (abs(picture.astype(int) - ground) < 8).mean() > 0.7, "figures have the ground of the page"


@pytest.mark.parametrize("width", WIDTHS)
def test_figures_are_whole_and_readable(page, width):
    page.show(width, "light")
    figures = page.ask(FIGURES)
    assert len(figures) > 5
    for figure in figures:
        assert figure["texts"] > 5, figure
        assert figure["cut"] == 0, figure
        assert figure["size"] > 8, figure  # pixels of the smallest letters, those of a legend


def test_nothing_is_fetched(page):
    others = [url for url in page.requests if not url.startswith("data:")]
    assert len(others) == 1
    assert others[0].startswith("file:")


def test_contents_lead_to_sections(page):
    links = page.ask("[...document.querySelectorAll('nav a')].map(link => link.hash.slice(1))")
    assert len(links) > 4
    assert page.ask(f"{json.dumps(links)}.map(id => document.getElementById(id).localName)") == ["h2"] * len(links)
