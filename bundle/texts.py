"""The texts of a bundle for people: model card, notices, the script that installs and runs it."""

from __future__ import annotations

import zipfile
from email.parser import Parser
from pathlib import Path

from bundle.latency import latency
from bundle.verdict import Verdict
from configs.layout import Layout, is_shipped
from pipeline.command import Selection
from runtime.bundles.format import Description
from runtime.tasks.artifacts import OPENVINO_TARGETS
from verify.page.markdown import fidelity

_TEMPLATES = Path(__file__).with_name("templates")
_IMPORTS = {"numpy": "numpy", "Pillow": "PIL", "tokenizers": "tokenizers"}
_COMMANDS = {
    "caption": "caption photo.jpg",
    "vqa": 'vqa photo.jpg --question "what color is the circle?"',
    "itm": 'match photo.jpg --text "two blue rings"',
}
_UNVERIFIED = """NOT VERIFIED. This bundle was made with UNVERIFIED=1: nothing says that it computes
what the checkpoint computes. What was not checked stands in attestations/verdict.json.
"""
_WHAT = {
    "caption": "Describes images",
    "vqa": "Answers questions about images",
    "itm": "Scores how well a text fits an image",
}
_SHIPPED = (
    "The checkpoint is a small one that ships with the project. It knows drawn scenes of coloured\n"
    "  shapes and nothing else: on photographs its answers mean nothing."
)
_OTHER = (
    "The sample is a drawn scene: it shows that the artifact answers as verified, not what the\n"
    "  checkpoint is good for. That is the checkpoint's own model card's to say."
)


def model_card(verdict: Verdict, selection: Selection, described: Description) -> str:
    """README.txt."""
    checkpoint = verdict.task.manifest.checkpoint
    records = [check.record() for check in verdict.checks]
    rows = fidelity(records) if verdict.checks else ["not measured"]
    simulated = verdict.target.simulated
    name = verdict.target.name
    revision = f", revision {checkpoint.revision}" if checkpoint.revision else ""
    return (
        (_TEMPLATES / "README.txt")
        .read_text(encoding="utf-8")
        .format(
            name=described.name,
            rule="=" * len(described.name),
            warning="" if described.verified else f"\n{_UNVERIFIED}",
            what=_WHAT[described.task],
            command=_COMMANDS[described.task],
            checkpoint=checkpoint.source + revision,
            weights=checkpoint.weights_sha256,
            architecture=checkpoint.architecture,
            target=name,
            precision=described.precision,
            needs=needs(described, simulated=simulated),
            device="the vendor's chip simulator, not on silicon" if simulated else "a processor",
            fidelity="\n".join(f"  {row}" for row in rows),
            latency="\n".join(f"  {line}" for line in latency(verdict, Layout(selection.pipeline))),
            limits=_SHIPPED if is_shipped(checkpoint.source) else _OTHER,
            task_folder=f"{described.task}/".ljust(26),
            enclosed=f" and what it needs, for {described.wheels}" if described.wheels else "",
        )
    )


def needs(described: Description, *, simulated: bool) -> str:
    """What must be on the machine."""
    found = f"Python {python_of(described.wheels)}"
    if not described.wheels:
        found += f", {', '.join(_packages(described))}"
    if simulated:
        found += "; sophon-sail of the board's SDK (without it, TPU-MLIR's simulator)"
    return found


def python_of(tag: str | None) -> str:
    """Which Pythons and processors a bundle is for, in words."""
    if tag is None:
        return "3.8 or later"
    python, _, machine = tag.partition("-")
    return f"3.{python.removeprefix('cp3')} on {machine}"


def run_script(described: Description, *, simulated: bool) -> str:
    """run.sh: what differs between bundles is written into it, so that it decides little."""
    packages = _packages(described)
    imports = [*_IMPORTS.values(), *(["openvino"] if "openvino" in packages else [])]
    # A board's driver is installed for its system's Python; so are packages not enclosed.
    system = simulated or described.wheels is None
    values = {
        "VENV_OPTIONS": "--system-site-packages " if system else "",
        "PYTHON": f"Python {python_of(described.wheels)}",
        "IMPORTS": ", ".join(imports),
        "PACKAGES": ", ".join(packages),
        "HINT": "" if described.wheels else ", or ask for a bundle with WHEELS=",
    }
    text = (_TEMPLATES / "run.sh").read_text(encoding="utf-8")
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text


def notices(wheels: list[Path]) -> str:
    """Whose work is inside, and under which licence."""
    lines = [
        "blip-edge: Apache-2.0, see LICENSE.",
        "Weights: as the licence of the checkpoint says that README.txt names; for the small",
        "checkpoints that ship with blip-edge that is Apache-2.0 as well.",
    ]
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
            metadata = Parser().parsestr(archive.read(name).decode("utf-8"))
        licence = metadata["License-Expression"] or (metadata["License"] or "").partition("\n")[0]
        classified = [
            value.rpartition(" :: ")[2]
            for value in metadata.get_all("Classifier", [])
            if value.startswith("License ::")
        ]
        said = licence or ", ".join(classified) or "see the wheel"
        lines.append(f"{wheel.name}: {said} (its licence files are inside)")
    return "\n".join(lines) + "\n"


def _packages(described: Description) -> list[str]:
    return [*_IMPORTS, *(["openvino"] if described.target in OPENVINO_TARGETS else [])]
