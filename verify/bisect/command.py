"""``python -m verify bisect``: names the layer or the part that makes an artifact drift."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from configs.errors import ConfigError, ParityError
from configs.load import shown
from pipeline.command import exit_codes, select
from pipeline.console import steps
from verify.artifacts import ONNX, find_artifacts

MODES = ("exact", "fast")


@exit_codes
def bisect(
    config: Annotated[Path, typer.Option(help="Pipeline file.")] = Path("configs/reference.yaml"),
    task: Annotated[str | None, typer.Option(help="Only these tasks, comma-separated.")] = None,
    target: Annotated[str, typer.Option(help="onnx, openvino or a chip: one target.")] = "openvino",
    precision: Annotated[str | None, typer.Option(help="Of the artifact.")] = None,
    mode: Annotated[str, typer.Option(help="OpenVINO arithmetic: exact or fast.")] = "exact",
    component: Annotated[
        str | None, typer.Option(help="Only these components; leaves out what is around them.")
    ] = None,
) -> None:
    """Compares every part and layer with its reference; exit code 1 when something is wrong."""
    # Here, not above: verification without bisection must not wait for onnx to load.
    from verify.bisect.diagnosis import diagnose
    from verify.bisect.record import print_diagnosis, stem, write

    if mode not in MODES:
        raise ConfigError(f"--mode {mode}: choose from {', '.join(MODES)}")
    if "," in target:
        raise ConfigError(f"--target {target}: one target at a time")
    if target == ONNX:
        selection = replace(select(config, task=task, component=component), targets=())
    else:
        selection = select(
            config, task=task, component=component, target=target, precision=precision
        )
    results = []
    tasks = find_artifacts(selection)
    pairs = [(item, found) for item in tasks for found in (item.targets or (item.onnx,))]
    with steps("bisect", len(pairs)) as progress:
        for item, artifacts in pairs:
            label = f"{item.task} {artifacts.name} {artifacts.precision}"
            diagnosis = diagnose(
                selection,
                item,
                artifacts,
                mode,
                lambda text, label=label: progress.start(f"{label}: {text}"),  # type: ignore[misc]
            )
            results.append((diagnosis, write(diagnosis, selection.pipeline)))
            progress.done(None)
    for diagnosis, path in results:
        print_diagnosis(diagnosis, path)
    wrong = [diagnosis for diagnosis, _ in results if diagnosis.verdict is not None]
    if wrong:
        names = "; ".join(f"{stem(found)}: {found.verdict}" for found in wrong)
        raise ParityError(f"{names}; see {shown(results[0][1].parent)}")
