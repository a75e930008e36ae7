"""The report in a real headless browser: loads nothing, breaks nothing, fits, prints, is usable."""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import yaml
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page

from tests.browser_support import launched
from tests.conftest import ROOT, run_stage
from tests.page_support import HOSTILE, Pipeline, component_check, token_check
from tests.test_verify_page import report

pytestmark = pytest.mark.browser

WIDTHS = (1280, 400)
#: A4 less the margins of style.css, in CSS pixels (96 per inch)
PRINTED_WIDTH = round((210 - 2 * 12) / 25.4 * 96)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


@dataclass
class Opened:
    """A loaded page, and everything that happened while it loaded."""

    page: Page
    messages: list[str]
    requests: list[str]


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    with browser.new_context() as context:
        yield context


def load(context: BrowserContext, path: Path, width: int = 1280) -> Opened:
    """Opens a page; every request but the page's own is recorded and refused."""
    page = context.new_page()
    page.set_viewport_size({"width": width, "height": 900})
    opened = Opened(page, [], [])
    page.on("console", lambda message: opened.messages.append(message.text))
    page.on("pageerror", lambda error: opened.messages.append(str(error)))
    page.on("dialog", lambda dialog: (opened.messages.append("dialog"), dialog.dismiss()))
    own = path.resolve().as_uri()

    def guard(route: object) -> None:
        url = route.request.url  # type: ignore[attr-defined]
        if url == own or url.startswith("data:"):
            route.continue_()  # type: ignore[attr-defined]
        else:
            opened.requests.append(url)
            route.abort()  # type: ignore[attr-defined]

    page.route("**/*", guard)
    page.goto(own)
    return opened


def passing(root: Path) -> Path:
    pipeline = Pipeline(
        root,
        tasks=("caption", "vqa", "itm"),
        targets={"openvino": ["f16"], "bm1684": ["f32"], "bm1684x": ["f16"], "bm1688": ["f16"]},
    )
    pipeline.build()
    pipeline.verdict(pipeline.passing_checks())
    pipeline.evaluation()
    pipeline.bisection([1e-6 * (1 + i % 7) for i in range(300)])
    pipeline.benchmark()
    report(pipeline)
    return pipeline.page


def failing(root: Path) -> Path:
    """Failures, hostile strings, and words too long for any column."""
    pipeline = Pipeline(root, targets={"bm1684x": ["f16"]})
    long = "/data/" + "very-long-folder-name" * 12
    pipeline.build(
        files={f"{HOSTILE}{long}".replace("/", ""): {"sha256": "ab" * 32, "size_bytes": 1}},
        tools={HOSTILE: long},
        commands=[[HOSTILE, long]],
        checkpoint={
            "source": long,
            "revision": HOSTILE,
            "weights_sha256": "cd" * 32,
            "architecture": HOSTILE,
        },
        built_as="w8f16",
    )
    bad = component_check("caption", "text_decoder", "bm1684x", "f16", 0.3, 5e-3)
    bad |= {"problems": [HOSTILE, long], "variant": HOSTILE}
    wrong = token_check("caption", "bm1684x", "f16", [(long, HOSTILE), ("a", "a")], text=HOSTILE)
    pipeline.verdict([*pipeline.passing_checks(), bad, wrong], not_simulated=[HOSTILE, long])
    result = pipeline.evaluation(long[-200:].replace("/", ""))
    result.write_text(result.read_text().replace("a red ring", long))
    layers = pipeline.bisection([1e-5, 2e-2, None])
    layers.write_text(layers.read_text().replace("feed_forward", long))
    bench = pipeline.benchmark()
    bench.write_text(bench.read_text().replace("have no precision", long))
    report(pipeline)
    return pipeline.page


def minimal(root: Path) -> Path:
    pipeline = Pipeline(root)
    pipeline.verdict([], error="verification did not finish; run it again")
    report(pipeline)
    return pipeline.page


@pytest.fixture(scope="module", params=[passing, failing, minimal], ids=lambda make: make.__name__)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return request.param(tmp_path_factory.mktemp("report"))


@pytest.mark.parametrize("width", WIDTHS)
def test_loads_silently_asks_nobody_and_fits(
    context: BrowserContext, made: Path, width: int
) -> None:
    opened = load(context, made, width)
    assert opened.messages == []
    assert opened.requests == []
    page = opened.page
    overflowing = page.evaluate(
        """() => [...document.querySelectorAll('body *')]
            .filter(e => !e.closest('.scroll') && !e.closest('.skip') && !e.closest('.hidden'))
            .filter(e => !e.closest('svg') || e.tagName === 'svg')
            .filter(e => e.getBoundingClientRect().right > innerWidth + 1)
            .map(e => `${e.tagName}.${e.className}`)"""
    )
    assert overflowing == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    broken = page.evaluate("[...document.images].filter(i => !i.naturalWidth).length")
    assert broken == 0
    dead = page.evaluate(
        """[...document.querySelectorAll('a[href]')]
            .filter(a => !document.getElementById(a.getAttribute('href').slice(1))).length"""
    )
    assert dead == 0


def test_verdict_is_on_the_first_screen_and_the_screenshot_shows_it(
    context: BrowserContext, made: Path
) -> None:
    page = load(context, made).page
    verdict = page.locator(".verdict")
    box = verdict.bounding_box()
    assert box is not None
    assert box["y"] < 300
    content = page.screenshot(full_page=True)
    if folder := os.environ.get("SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / f"{made.parent.parent.name}.png").write_bytes(content)
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    assert picture.width == 1280
    ground = picture.getpixel((int(box["x"]) + 12, int(box["y"]) + 6))
    assert ground != (255, 255, 255)
    colours = picture.getcolors(1 << 24)
    assert colours is not None
    assert len(colours) > 50


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessible(context: BrowserContext, made: Path, scheme: Literal["light", "dark"]) -> None:
    """No violation of axe-core's rules: contrast, names, headings, tables, landmarks, language."""
    page = load(context, made).page
    page.emulate_media(color_scheme=scheme)
    results = Axe().run(page)
    assert results.violations_count == 0, results.generate_report()


def test_usable_by_keyboard(context: BrowserContext, made: Path) -> None:
    page = load(context, made).page
    focused = "document.activeElement.getAttribute('href') || document.activeElement.tagName"
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "#content"
    page.keyboard.press("Tab")
    assert page.evaluate(focused).startswith("#")
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == page.evaluate(
        "document.querySelector('nav a').getAttribute('href')"
    )
    page.locator("details:not([open]) summary").first.focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.parentElement.open")
    page.locator("details").evaluate_all("all => all.forEach(e => e.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    unreachable = page.evaluate(
        """[...document.querySelectorAll('.scroll')]
            .filter(e => e.scrollWidth > e.clientWidth && e.tabIndex !== 0).length"""
    )
    assert unreachable == 0


def test_prints_on_a4_without_cut_tables(context: BrowserContext, made: Path) -> None:
    page = load(context, made).page
    content = page.pdf(prefer_css_page_size=True)
    pages = len(re.findall(rb"/Type\s*/Page\b", content))
    assert 1 <= pages <= 20
    sizes = set(re.findall(rb"/MediaBox\s*\[\s*0 0 ([\d.]+) ([\d.]+)\s*\]", content))
    assert {(round(float(w)), round(float(h))) for w, h in sizes} == {(595, 842)}
    page.emulate_media(media="print")
    page.set_viewport_size({"width": PRINTED_WIDTH, "height": 1000})
    cut = page.evaluate(
        """[...document.querySelectorAll('.scroll, table, pre, img')]
            .filter(e => e.getBoundingClientRect().right > innerWidth + 1)
            .map(e => e.tagName + ' ' + (e.getAttribute('aria-label') || ''))"""
    )
    assert cut == []
    hidden = page.evaluate(
        """[...document.querySelectorAll('details')]
            .filter(e => e.checkVisibility() && e.clientHeight < 60).length"""
    )
    assert hidden == 0


def test_reference_pipeline(
    context: BrowserContext, openvino_artifacts: Path, tmp_path: Path
) -> None:
    """The page of real artifacts and a real verification, by the user's own commands."""
    ignored = shutil.ignore_patterns("work", "logs", "verify*", "evaluation", "report.html", "BM*")
    shutil.copytree(openvino_artifacts, tmp_path / "reference", ignore=ignored)
    data = yaml.safe_load((ROOT / "configs" / "reference.yaml").read_text())
    data["artifacts"] = str(tmp_path)
    data["tasks"] = {"caption": data["tasks"]["caption"]}
    data["targets"] = {"openvino": data["targets"]["openvino"]}
    for gate in data["verify"]["tokens"].values():
        gate.update(scenes=6)
    config = tmp_path / "pipeline.yaml"
    config.write_text(yaml.safe_dump(data))
    for command in (("verify",), ("verify", "report")):
        result = run_stage(*command, "--config", str(config))
        assert result.returncode == 0, result.stderr
    path = tmp_path / "reference" / "report.html"
    assert path.stat().st_size < 5_000_000
    opened = load(context, path)
    assert (opened.messages, opened.requests) == ([], [])
    page = opened.page
    assert page.locator(".verdict .headline").inner_text() == "Verified"
    assert page.locator(".sample").count() == 6
    assert page.locator(".sample img").count() == 6
    assert Axe().run(page).violations_count == 0
    page.set_viewport_size({"width": 400, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
