"""Train and measure the reference checkpoints: ``python -m models.checkpoints.training --help``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from models.checkpoints.training.architecture import (
    MAX_TOKENS,
    TASKS,
    Task,
    build_models,
    reference_config,
    reference_image_processor,
)
from models.checkpoints.training.checkpoint import (
    build_tokenizer,
    checkpoint_folder,
    copy_matching_encoder,
    load_weights,
    save_checkpoint,
    word_pieces,
)
from models.checkpoints.training.data import BatchMaker, load_pool
from models.checkpoints.training.evaluate import evaluate_checkpoint
from models.checkpoints.training.trainer import Schedule, Trainer
from pipeline.scenes import vocabulary

#: The least held-out accuracy of a reference checkpoint.
BAR = 0.95
MAIN_METRICS: dict[Task, str] = {
    "caption": "caption_exact",
    "vqa": "answer_exact",
    "itm": "matching",
}
CONSOLE = Console(width=140, soft_wrap=True)


def main(arguments: list[str] | None = None) -> int:
    """Train, or with ``--evaluate`` measure; returns 1 if a measured figure misses the bar."""
    options = _parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    tasks: tuple[Task, ...] = TASKS if options.task == "all" else (options.task,)
    if not options.evaluate:
        _train(options, tasks)
    return _measure(options, tasks)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--task", choices=(*TASKS, "all"), default="all")
    add("--out", type=Path, default=Path("models/checkpoints"))
    add("--seed", type=int, default=0)
    add("--steps", type=int, default=5000)
    add("--rate", type=float, default=1.0, help="factor on the learning rates")
    add("--descent", type=float, default=0.35, help="share of the steps in which the rates fall")
    add("--start", type=Path, help="folder of checkpoints to go on from")
    add(
        "--matching-encoder",
        action="store_true",
        help="with --start: begin VQA with the text encoder of the matching checkpoint there",
    )
    add("--batch-size", type=int, default=64)
    add("--pool", type=int, default=40000, help="number of training scenes")
    add("--threads", type=int, help="default: torch's own choice")
    add("--save-every", type=int, default=250, help="steps between checkpoints")
    state = Path("models/artifacts/training")
    add("--state", type=Path, default=state, help="folder of the resumable state")
    add("--evaluate", action="store_true", help="only measure what is in --out")
    add("--scenes", type=int, default=1000, help="held-out scenes to measure on")
    add("--interim-scenes", type=int, default=100, help="the same, while training")
    return parser.parse_args(arguments)


def _train(options: argparse.Namespace, tasks: tuple[Task, ...]) -> None:
    """Trains the tasks together on one vision encoder, saving checkpoints on the way."""
    pieces = word_pieces(vocabulary())
    tokenizer = build_tokenizer(pieces, MAX_TOKENS)
    models = build_models(reference_config(len(tokenizer), tokenizer.sep_token_id), options.seed)
    if options.start is not None:
        load_weights(models, tasks, options.start)
        if options.matching_encoder:
            copy_matching_encoder(models, options.start)
    pool = load_pool(options.state, options.pool, tokenizer)
    batches = BatchMaker(pool, tokenizer, options.batch_size, options.seed)
    schedule = Schedule(options.steps, rate=options.rate, descent_share=options.descent)
    name = "-".join(tasks) + f"-seed{options.seed}.pt"
    trainer = Trainer(models, schedule, tasks, options.state / name)
    CONSOLE.print(f"from step {trainer.resume()} to {options.steps}")
    image_processor = reference_image_processor()

    def pause(step: int) -> None:
        for task in tasks:
            folder = checkpoint_folder(options.out, task)
            save_checkpoint(folder, models[task], tokenizer, image_processor, pieces)
            if options.interim_scenes:
                figures = evaluate_checkpoint(folder, task, options.interim_scenes, 10**6)
                CONSOLE.print(f"step {step}: {json.dumps(figures['accuracy'])}")

    trainer.run(batches.make, options.save_every, pause, CONSOLE.print)


def _measure(options: argparse.Namespace, tasks: tuple[Task, ...]) -> int:
    """Measures checkpoints, writes their ``metrics.json`` and prints a table."""
    table = Table("checkpoint", "metric", "held-out accuracy", "asked")
    passed = True
    for task in tasks:
        folder = checkpoint_folder(options.out, task)
        figures = evaluate_checkpoint(folder, task, options.scenes)
        text = json.dumps(figures, indent=2) + "\n"
        (folder / "metrics.json").write_text(text, encoding="utf-8")
        for metric, accuracy in figures["accuracy"].items():
            asked = str(figures["asked"][metric])
            table.add_row(folder.name, metric, f"{100 * accuracy:.2f} %", asked)
        passed = passed and figures["accuracy"][MAIN_METRICS[task]] >= BAR
    CONSOLE.print(table)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
