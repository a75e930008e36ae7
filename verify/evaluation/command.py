"""``python -m verify evaluate``: the command line of the evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from configs.errors import ConfigError
from configs.load import shown
from configs.schema import EvaluateConfig
from pipeline.command import exit_codes, select


@exit_codes
def evaluate(
    config: Annotated[Path, typer.Option(help="Pipeline file.")] = Path("configs/reference.yaml"),
    task: Annotated[str | None, typer.Option(help="Only these tasks, comma-separated.")] = None,
    target: Annotated[str | None, typer.Option(help="Only these targets, comma-separated.")] = None,
    precision: Annotated[str | None, typer.Option(help="Only these precisions.")] = None,
    mode: Annotated[str | None, typer.Option(help="OpenVINO: exact, fast, or both.")] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(help="kind:path instead of the pipeline file's; may be repeated."),
    ] = None,
    questions: Annotated[str | None, typer.Option(help="VQAv2: the file of questions.")] = None,
    images: Annotated[str | None, typer.Option(help="Folder of the data set's images.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of a Karpathy file.")] = None,
    items: Annotated[int | None, typer.Option(help="At most so many items.")] = None,
    simulated_items: Annotated[
        int | None, typer.Option(help="The same on a chip's simulator.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Caption prompt.")] = None,
    rerank: Annotated[
        int | None, typer.Option(help="Candidates that the matching head ranks anew.")
    ] = None,
    answers: Annotated[
        str | None, typer.Option(help="File of answers that questions are to choose from.")
    ] = None,
    answer_candidates: Annotated[
        int | None, typer.Option(help="How many of them are scored whole.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of scenes and bootstrap.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; default: one per core.")] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Also simulate full-size BModels; may take days.")
    ] = False,
) -> None:
    """Answers of targets over a data set, side by side with the checkpoint's."""
    from verify.evaluation.console_table import print_evaluation
    from verify.evaluation.data_sets import parse_data_set
    from verify.evaluation.pipeline import Options, default_workers, failure
    from verify.evaluation.pipeline import evaluate as run

    selection = select(config, task=task, target=target, precision=precision)
    if workers is not None and workers < 1:
        raise ConfigError(f"--workers {workers}: must be at least 1")
    if not dataset and (questions or images or split):
        raise ConfigError("--questions, --images, --split: belong to --dataset; name one")
    changed: dict[str, Any] = {
        "items": items,
        "simulated_items": simulated_items,
        "prompt": prompt,
        "rerank": rerank,
        "answers": answers,
        "answer_candidates": answer_candidates,
        "seed": seed,
        "modes": None if mode is None else tuple(mode.replace(",", " ").split()),
        "data_sets": tuple(
            parse_data_set(text, questions=questions, images=images, split=split)
            for text in dataset or ()
        )
        or None,
    }
    options = Options(
        config=_changed(selection.pipeline.evaluate, changed),
        file=shown(config),
        workers=workers or default_workers(),
        full=full,
        tasks_named=task is not None,
    )
    finished = []
    for evaluation in run(selection, options):
        print_evaluation(evaluation)
        finished.append(evaluation)
    error = failure(finished)
    if error:
        raise error


def _changed(config: EvaluateConfig, changed: dict[str, Any]) -> EvaluateConfig:
    given = {name: value for name, value in changed.items() if value is not None}
    try:
        return EvaluateConfig.model_validate({**config.model_dump(), **given})
    except ValidationError as error:
        problem = error.errors()[0]
        option = str(problem["loc"][0]).replace("_", "-").replace("modes", "mode")
        raise ConfigError(f"--{option}: {problem['msg']} (given: {problem['input']!r})") from None
