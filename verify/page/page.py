"""Puts the page together: one HTML file that needs nothing but itself."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import jinja2
import yaml

from configs.load import load_target
from configs.schema import PipelineConfig
from pipeline.atomic import artifact_lock, write_atomically
from pipeline.manifest import file_sha256, key_of
from pipeline.sources import source_digest
from verify.page import figures
from verify.page.benchmark import benchmarks
from verify.page.built import artifacts, tool_versions
from verify.page.checks import error_axis, rows, tightest
from verify.page.checks import figures as check_figures
from verify.page.evaluation import evaluations, failed_gates
from verify.page.layers import bisections
from verify.page.overview import overview
from verify.page.scenes import samples
from verify.page.sources import Sources, read_sources

REPORT_FILE = "report.html"
TEMPLATES = Path(__file__).parent / "templates"
#: The key stands in the page's head: an unchanged report is not written again.
_KEY = re.compile(r'<meta name="report-key" content="([0-9a-f]{64})">')

#: And the digest of all before it at its end: a torn or edited page is written again.
_SEAL = "<!-- sha256 {} -->\n"


@dataclass(frozen=True)
class Written:
    """Outcome of one run."""

    path: Path
    size_bytes: int
    state: str
    headline: str
    sentence: str
    unchanged: bool


def write_report(pipeline: PipelineConfig, config: Path, *, force: bool = False) -> Written:
    """Writes ``report.html`` into a pipeline's artifacts folder, unless it is there already.

    Raises:
        InputError: nothing was verified yet, or verify.json is damaged.
        ToolError: the page cannot be written.
    """
    sources = read_sources(pipeline, config)
    path = sources.root / REPORT_FILE
    key = key_of({"sources": sources.digest, "page": _own_digest()})
    every = rows(sources.checks)
    summary = overview(sources, every, failed_gates(evaluations(sources)))
    unchanged = not force and _key_of_page(path) == key
    if not unchanged:
        with artifact_lock(sources.root, "report"):
            page = render(sources, key)
            write_atomically(path, page + _SEAL.format(_digest(page)))
    return Written(
        path, path.stat().st_size, summary.state, summary.headline, summary.sentence, unchanged
    )


def render(sources: Sources, key: str = "0" * 64) -> str:
    """The page's HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        exponent=figures.exponent,
        percent=figures.percent,
        decimal=figures.decimal,
        file_size=figures.file_size,
        milliseconds=figures.milliseconds,
        times=figures.times,
        component=figures.component_name,
        task=figures.task_name,
        target=figures.target_name,
    )
    every = rows(sources.checks)
    # These add what they could not read to the sources' notices, so the overview comes after them.
    results, layers, measured = evaluations(sources), bisections(sources), benchmarks(sources)
    return environment.get_template("page.html").render(
        key=key,
        sources=sources,
        pipeline=sources.pipeline,
        overview=overview(sources, every, failed_gates(results)),
        rows=every,
        axis=error_axis(every),
        check_figures=check_figures,
        tightest=tightest,
        samples=samples(every),
        evaluations=results,
        bisections=layers,
        benchmarks=measured,
        artifacts=artifacts(sources, every),
        tools=tool_versions(sources),
        configuration=_resolved(sources.pipeline),
        style=(TEMPLATES / "style.css").read_text(encoding="utf-8"),
    )


def _resolved(pipeline: PipelineConfig) -> str:
    """The configuration with every default filled in, its targets below it."""
    data = pipeline.model_dump(mode="json")
    targets = {name: load_target(name).model_dump(mode="json") for name in pipeline.targets}
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True) + (
        "\n# configs/targets\n" + yaml.safe_dump(targets, sort_keys=False, allow_unicode=True)
    )


def _own_digest() -> str:
    templates = {path.name: file_sha256(path) for path in sorted(TEMPLATES.iterdir())}
    return key_of({"sources": source_digest("verify.page.page"), **templates})


def _key_of_page(path: Path) -> str | None:
    """What a page was made from; None if it is missing, or not as it was written."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    length = len(_SEAL.format(_digest("")))
    page, seal = text[:-length], text[-length:]
    found = _KEY.search(page[:2000])
    return found[1] if found and seal == _SEAL.format(_digest(page)) else None


def _digest(page: str) -> str:
    return hashlib.sha256(page.encode()).hexdigest()
