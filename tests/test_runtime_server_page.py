"""The server's page in a real headless browser: asks, shows, tells nobody, is usable by all."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Page

from runtime import Captioner
from runtime.server.settings import TOKEN_VARIABLE
from tests.browser_support import launched
from tests.runtime_support import THREADS
from tests.server_support import IMAGES, TOKEN, Server, encoded, serving

pytestmark = pytest.mark.browser

ARGUMENTS = (
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--force-color-profile=srgb",
    "--font-render-hinting=none",
)
GOLDEN = Path(__file__).parent / "golden" / "server_page"
FONT = "DejaVu Sans"
#: Side of the squares that are compared, in pixels, and the mean difference of a channel, of 255,
#: in one of them: letters are drawn a little differently by each version.
BLOCK = 32
TOLERANCE = 14.0
QUESTION = "what color is the ring?"


@pytest.fixture(scope="module")
def server(exported_artifacts: Path) -> Iterator[Server]:
    with serving(exported_artifacts, target="openvino,onnx") as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched(*ARGUMENTS) as browser:
        yield browser


@dataclass
class Opened:
    """The page, and what it said and asked."""

    page: Page
    messages: list[str]
    elsewhere: list[str]


@pytest.fixture
def opened(browser: Browser, server: Server) -> Iterator[Opened]:
    with browser.new_context(permissions=["camera"]) as context:
        yield load(context.new_page(), server.url)


def load(page: Page, url: str) -> Opened:
    page.set_default_timeout(60_000)
    opened = Opened(page, [], [])
    page.on("console", lambda message: opened.messages.append(message.text))
    page.on("pageerror", lambda error: opened.messages.append(str(error)))
    page.on(
        "request",
        lambda request: (
            None
            if request.url.startswith((f"{url}/", f"blob:{url}/"))
            else opened.elsewhere.append(request.url)
        ),
    )
    page.goto(url)
    return opened


def choose(page: Page, index: int = 0) -> None:
    page.locator("#file").set_input_files(
        {"name": "scene.png", "mimeType": "image/png", "buffer": encoded(index)}
    )
    page.locator("#preview").wait_for(state="visible")


def answers(page: Page) -> list[str]:
    page.get_by_role("button", name="Answer").click()
    page.locator("#run:enabled").wait_for()
    return page.locator(".answer").all_inner_texts()


@pytest.fixture(scope="module")
def captions(exported_artifacts: Path) -> list[str]:
    with Captioner.from_artifacts(exported_artifacts, target="onnx", threads=THREADS) as captioner:
        return [caption.text for caption in captioner(IMAGES[:2])]


def test_a_picture_is_answered_on_two_targets_side_by_side(
    opened: Opened, captions: list[str]
) -> None:
    page = opened.page
    page.get_by_label("onnx").wait_for()
    choose(page)
    assert answers(page) == [captions[0], captions[0]]
    assert page.locator(".card h3").all_inner_texts() == ["openvino", "onnx"]
    for line in page.locator(".facts").all_inner_texts():
        assert "first word" in line
        assert "server" in line
    boxes = [card.bounding_box() for card in page.locator(".card").all()]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert captions[0] in page.get_by_role("status").inner_text()
    page.get_by_role("radio", name="Ask").check()
    page.get_by_label("Question").fill(QUESTION)
    page.get_by_label("onnx").uncheck()
    assert len(answers(page)) == 1
    page.get_by_role("radio", name="Match").check()
    page.get_by_label("Descriptions").fill("a yellow square\ntwo blue rings")
    answers(page)
    assert page.locator(".card tbody tr").count() == 2
    assert opened.messages == []
    assert opened.elsewhere == []


def test_the_answer_comes_word_by_word(opened: Opened, captions: list[str]) -> None:
    page = opened.page
    page.get_by_label("onnx").wait_for()
    page.evaluate(
        """() => {
            window.seen = [];
            new MutationObserver(() => {
                const answer = document.querySelector('.answer');
                if (answer) window.seen.push(answer.textContent);
            }).observe(document.getElementById('cards'), {childList: true, subtree: true});
        }"""
    )
    choose(page)
    page.get_by_label("onnx").uncheck()
    answers(page)
    seen = [text for text in page.evaluate("window.seen") if text]
    assert seen[-1] == captions[0]
    assert all(captions[0].startswith(text) for text in seen)
    assert len(page.locator(".answer").first.evaluate("e => [...e.childNodes]")) > 3


def test_pictures_are_dropped_pasted_or_taken(opened: Opened, captions: list[str]) -> None:
    page = opened.page
    page.get_by_label("onnx").wait_for()
    page.get_by_label("onnx").uncheck()
    give = """([type, bytes]) => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], 'scene.png', {type: 'image/png'}));
        const target = document.getElementById('drop');
        target.dispatchEvent(type === 'drop'
            ? new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true})
            : new ClipboardEvent('paste', {clipboardData: data, bubbles: true}));
    }"""
    for index, way in enumerate(("drop", "paste")):
        page.evaluate(give, [way, list(encoded(index))])
        assert answers(page) == [captions[index]]
    page.get_by_role("button", name="Use the camera").click()
    page.get_by_role("button", name="Take the picture").click()
    page.get_by_role("button", name="Use the camera").wait_for()
    page.locator("#preview").wait_for(state="visible")
    assert page.locator("#preview").get_attribute("alt") == "Your picture: from the camera"
    assert len(answers(page)[0]) > 3
    assert opened.messages == []


def test_usable_by_keyboard_alone(opened: Opened, captions: list[str]) -> None:
    page = opened.page
    page.get_by_label("onnx").wait_for()
    focused = "document.activeElement.id || document.activeElement.value || 'skip'"
    stops = []
    for _ in range(9):
        page.keyboard.press("Tab")
        stops.append(page.evaluate(focused))
    assert stops[:4] == ["skip", "file", "shoot", "caption"]
    assert stops[4:7] == ["openvino", "onnx", "run"]
    page.locator("#run").focus()
    page.keyboard.press("Enter")
    assert page.get_by_role("status").inner_text() == "Choose a picture first."
    choose(page)
    page.locator("input[value=caption]").focus()
    page.keyboard.press("ArrowDown")
    assert page.locator("#text").is_visible()
    page.keyboard.press("ArrowUp")
    page.locator("#run").focus()
    page.keyboard.press("Enter")
    page.get_by_text(captions[0]).first.wait_for()


def test_what_goes_wrong_is_said(opened: Opened) -> None:
    page = opened.page
    page.get_by_label("onnx").wait_for()
    page.locator("#file").set_input_files(
        {"name": "broken.png", "mimeType": "image/png", "buffer": b"no picture"}
    )
    answers(page)
    assert page.locator(".bad").count() == 2
    assert "not an image" in page.locator(".bad").first.inner_text()
    assert page.get_by_role("button", name="Answer").is_enabled()


def test_a_token_is_asked_for(browser: Browser, exported_artifacts: Path) -> None:
    environment = {TOKEN_VARIABLE: TOKEN}
    with serving(exported_artifacts, **environment) as server, browser.new_context() as context:
        page = load(context.new_page(), server.url).page
        page.get_by_label("Token of this server").wait_for()
        choose(page)
        page.get_by_label("Token of this server").fill(TOKEN)
        page.get_by_role("button", name="Answer").click()
        page.get_by_role("heading", name="onnx").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_looks_as_it_did_and_is_accessible(
    browser: Browser, server: Server, width: int, scheme: str, tmp_path: Path
) -> None:
    """No violation of axe-core's rules, nothing beyond the edge, and the picture that was kept."""
    with browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme=scheme,  # type: ignore[arg-type]
        reduced_motion="reduce",
        bypass_csp=True,  # for axe and the font, which the policy rightly keeps out
    ) as context:
        page = load(context.new_page(), server.url).page
        page.get_by_label("onnx").wait_for()
        page.add_style_tag(content=f"* {{ font-family: '{FONT}' !important }}")
        choose(page)
        page.get_by_role("radio", name="Ask").check()
        page.get_by_label("Question").fill(QUESTION)
        answers(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        small = page.evaluate(
            """[...document.querySelectorAll('button, .button, fieldset label')]
                .filter(e => e.checkVisibility() && e.getBoundingClientRect().height < 24)
                .map(e => e.textContent)"""
        )
        assert small == []
        results = Axe().run(page)
        assert results.violations_count == 0, results.generate_report()
        # Times differ from run to run.
        page.locator(".facts").evaluate_all("all => all.forEach(e => e.textContent = 'times')")
        page.mouse.move(0, 0)
        page.evaluate("document.activeElement.blur()")
        shown = page.screenshot(full_page=True, animations="disabled")
    compare(shown, f"{width}-{scheme}.png", tmp_path)


def compare(shown: bytes, name: str, folder: Path) -> None:
    """Against the picture that was kept; UPDATE_GOLDEN=1 keeps this one."""
    lister = shutil.which("fc-list")
    if lister is None or FONT not in subprocess.check_output([lister], text=True):
        assert not os.environ.get("REQUIRE_BROWSER"), f"install the font {FONT}"
        pytest.skip(f"needs the font {FONT}; run: apt-get install fonts-dejavu-core")
    path = GOLDEN / name
    found = Image.open(io.BytesIO(shown)).convert("RGB")
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        found.quantize(64).save(path, optimize=True)
    kept = Image.open(path).convert("RGB")
    found.save(folder / name)
    assert abs(found.height - kept.height) <= 4, f"{folder / name} and {path}"
    height = min(found.height, kept.height)
    pair = [
        np.asarray(image.crop((0, 0, kept.width, height)), dtype=float) for image in (found, kept)
    ]
    difference = np.abs(pair[0] - pair[1]).mean(axis=2)
    blocks = [
        difference[top : top + BLOCK, left : left + BLOCK].mean()
        for top in range(0, height, BLOCK)
        for left in range(0, kept.width, BLOCK)
    ]
    assert max(blocks) <= TOLERANCE, f"{max(blocks):.1f}: {folder / name} and {path}"
