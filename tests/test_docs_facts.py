"""Facts that the pages state of the code: paths, commands, limits. The code is the truth."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from configs.tolerances import load_tolerances

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("docs/adr/*.md")])
#: Folders whose files pages may name; models/artifacts holds outputs, which need not be there.
FOLDERS = (
    "configs|pipeline|export|compile|runtime|verify|bundle|benchmarks|scripts|tests|docs|"
    "requirements"
)
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
PATH = re.compile(rf"`((?:{FOLDERS}|models/checkpoints)/[\w./-]*)`")
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
ANCHOR = re.compile(r"\]\(([\w./-]*\.md)?#([\w-]+)\)")
#: Of one page for people.
MOST_WORDS = 1500
#: Pages about a decision speak of the tree as it was then.
CURRENT = [page for page in PAGES if page.parent.name != "adr" and page.name != "CHANGELOG.md"]


def matches(pattern: re.Pattern[str], pages: list[Path]) -> Iterator[tuple[str, str]]:
    for page in pages:
        for found in pattern.findall(page.read_text()):
            yield page.relative_to(ROOT).as_posix(), found


def missing_targets(text: str) -> set[str]:
    known = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.M))
    return set(re.findall(r"(?:^|`)make ([a-z][a-z-]*)", text, re.M)) - known


def test_every_file_that_a_page_names_exists() -> None:
    wrong = [(page, name) for page, name in matches(PATH, CURRENT) if not (ROOT / name).exists()]
    assert wrong == []


def test_every_link_leads_somewhere() -> None:
    wrong = [
        (page, link)
        for page, link in matches(LINK, PAGES)
        if not (ROOT / page).parent.joinpath(link).exists()
    ]
    assert wrong == []


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: page.name)
def test_every_make_target_exists(page: Path) -> None:
    assert missing_targets(page.read_text()) == set()


def test_every_module_that_a_page_runs_exists() -> None:
    run = re.compile(rf"python3? -m ((?:{FOLDERS})[\w.]*)")
    found = list(matches(run, CURRENT))
    assert len(found) > 5
    assert [(page, name) for page, name in found if find_spec(name) is None] == []


FACTS = [
    (
        "runtime.decoding.batching",
        "STAGE_BYTES",
        1 << 20,
        "tensors under {} MiB",
        "docs/python.md",
    ),
    ("runtime.decoding.batching", "STAGE_BYTES", 1 << 20, "up to {} MiB", "docs/openvino.md"),
    ("compile.backend", "BUDGET_BYTES", 1e9, "{} GB together", "docs/adding-a-target.md"),
    ("verify.parity.combined", "BLOCK_BYTES", 1, "every {}-byte block", "docs/bisect.md"),
    ("verify.plan", "LARGE_BMODEL_BYTES", 1 << 20, "above {} MiB", "docs/verification.md"),
    ("verify.evaluation.comparing", "WORST", 1, "up to {} cases", "docs/evaluation.md"),
    ("verify.evaluation.comparing", "THUMBNAIL_PIXELS", 1, "at most {} px", "docs/evaluation.md"),
    ("verify.checkpoint.answers", "CLOSE_LOGITS", 1, "closer than {}", "docs/evaluation.md"),
]


@pytest.mark.parametrize(
    ("module", "name", "unit", "sentence", "page"),
    FACTS,
    ids=[f"{n} in {p}" for _, n, _, _, p in FACTS],
)
def test_limits_are_those_of_the_code(
    module: str, name: str, unit: float, sentence: str, page: str
) -> None:
    figure = getattr(import_module(module), name) / unit
    words = {f"{figure:g}", f"{figure:,.0f}", np_style(figure)}
    text = (ROOT / page).read_text()
    assert any(sentence.format(word) in text for word in words), f"{sentence}: {words}"


def test_the_limit_of_rewrites_is_that_of_the_table() -> None:
    limit = np_style(load_tolerances().limit("rewritten_graph"))
    assert f"above {limit} of" in (ROOT / "docs/adding-a-target.md").read_text()


def np_style(figure: float) -> str:
    """``1e-4``, where Python writes ``0.0001``."""
    mantissa, _, power = f"{figure:e}".partition("e")
    return f"{float(mantissa):g}e{int(power)}"


def test_the_index_of_decisions_lists_all_of_them() -> None:
    folder = ROOT / "docs" / "adr"
    listed = set(LINK.findall((folder / "README.md").read_text()))
    assert {path.name for path in folder.glob("0*.md")} == listed


def test_the_index_lists_every_page() -> None:
    folder = ROOT / "docs"
    listed = [link for link in LINK.findall((folder / "README.md").read_text()) if "/" not in link]
    assert sorted(listed) == sorted(p.name for p in folder.glob("*.md") if p.name != "README.md")


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))], ids=lambda page: page.name
)
def test_a_page_is_read_in_one_sitting(page: Path) -> None:
    """Marks of tables and code fences are no words."""
    words = [word for word in page.read_text().split() if re.search(r"\w", word)]
    assert len(words) <= MOST_WORDS


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: page.name)
def test_a_link_into_a_page_meets_a_heading(page: Path) -> None:
    for name, heading in ANCHOR.findall(page.read_text()):
        there = page.parent / name if name else page
        assert heading in headings(there), f"{name}#{heading}"


def headings(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in found}
