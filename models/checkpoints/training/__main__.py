"""Train and measure the reference checkpoints: ``python -m models.checkpoints.training --help``."""

from __future__ import annotations

import argparse
import json
import sys
import time
from functools import partial
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
    checkpoint_folder,
    copy_matching_encoder,
    load_weights,
    save_checkpoint,
)
from models.checkpoints.training.data import BatchMaker, Pool, build_pool
from models.checkpoints.training.evaluate import evaluate_checkpoint
from models.checkpoints.training.parallel import run_processes
from models.checkpoints.training.tokenizer import build_tokenizer, word_pieces
from models.checkpoints.training.trainer import MATRIX_RATE, OTHER_RATE, Schedule, Trainer
from pipeline.scenes import vocabulary
from pipeline.scenes.scene import SCENES_VERSION

BAR = 0.95
"""The least held-out accuracy of a reference checkpoint."""

MAIN_METRICS: dict[Task, str] = {
    "caption": "caption_exact",
    "vqa": "answer_exact",
    "itm": "matching",
}


def main(arguments: list[str] | None = None) -> int:
    """Train, or with ``--evaluate`` measure; returns 1 if a measured figure misses the bar."""
    options = _parse(arguments)
    console = Console(width=140)
    torch.set_num_threads(options.threads)
    tasks: tuple[Task, ...] = TASKS if options.task == "all" else (options.task,)
    if not options.evaluate:
        _train(options, tasks, console)
    return _measure(options, tasks, console)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=(*TASKS, "all"), default="all")
    parser.add_argument("--out", type=Path, default=Path("models/checkpoints"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--rate", type=float, default=1.0, help="factor on the learning rates")
    parser.add_argument(
        "--descent", type=float, default=0.35, help="share of the steps in which the rates fall"
    )
    parser.add_argument("--start", type=Path, help="folder of checkpoints to go on from")
    parser.add_argument(
        "--matching-encoder",
        action="store_true",
        help="with --start: begin VQA with the text encoder of the matching checkpoint there",
    )
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--pool", type=int, default=40000, help="number of training scenes")
    parser.add_argument("--threads", type=int, default=1, help="threads of each process")
    parser.add_argument("--processes", type=int, default=2, help="processes that share a batch")
    parser.add_argument("--save-every", type=int, default=250, help="steps between checkpoints")
    parser.add_argument(
        "--state", type=Path, default=Path("models/artifacts/training"), help="resumable state"
    )
    parser.add_argument("--evaluate", action="store_true", help="only measure what is in --out")
    parser.add_argument("--scenes", type=int, default=1000, help="held-out scenes to measure on")
    parser.add_argument("--interim-scenes", type=int, default=100, help="the same, while training")
    return parser.parse_args(arguments)


def _train(options: argparse.Namespace, tasks: tuple[Task, ...], console: Console) -> None:
    """Draw the training scenes unless they are there, then train in all processes."""
    pool_folder = _pool_folder(options)
    if not pool_folder.exists():
        tokenizer = build_tokenizer(word_pieces(vocabulary()), MAX_TOKENS)
        started = time.monotonic()
        build_pool(options.pool, "train", tokenizer, options.processes).save(pool_folder)
        console.print(f"drew {options.pool} scenes in {time.monotonic() - started:.0f} s")
    run_processes(options.processes, partial(_train_process, options, tasks))


def _pool_folder(options: argparse.Namespace) -> Path:
    state: Path = options.state
    return state / f"pool-version{SCENES_VERSION}-{options.pool}"


def _train_process(options: argparse.Namespace, tasks: tuple[Task, ...], rank: int) -> None:
    """Train the tasks together on one vision encoder, saving checkpoints on the way."""
    console = Console(width=140)
    torch.set_num_threads(options.threads)
    pieces = word_pieces(vocabulary())
    tokenizer = build_tokenizer(pieces, MAX_TOKENS)
    models = build_models(reference_config(len(tokenizer), tokenizer.sep_token_id), options.seed)
    if options.start is not None:
        load_weights(models, tasks, options.start)
        if options.matching_encoder:
            copy_matching_encoder(models, options.start)
    pool = Pool.load(_pool_folder(options))
    batches = BatchMaker(
        pool, tokenizer, options.batch_size // options.processes, options.seed, rank
    )
    name = "-".join(tasks) + f"-seed{options.seed}.pt"
    schedule = Schedule(
        options.steps,
        matrix_rate=MATRIX_RATE * options.rate,
        other_rate=OTHER_RATE * options.rate,
        descent_share=options.descent,
    )
    trainer = Trainer(models, batches, schedule, tasks, options.state / name, rank)
    console.print(f"process {rank}: from step {trainer.resume()} to {options.steps}")
    image_processor = reference_image_processor()

    def pause(step: int) -> None:
        for task in tasks:
            folder = checkpoint_folder(options.out, task)
            save_checkpoint(folder, models[task], tokenizer, image_processor, pieces)
            if options.interim_scenes:
                figures = evaluate_checkpoint(folder, task, options.interim_scenes, 10**6)
                console.print(f"step {step}: {json.dumps(figures['accuracy'])}", soft_wrap=True)

    trainer.run(options.save_every, pause, console)


def _measure(options: argparse.Namespace, tasks: tuple[Task, ...], console: Console) -> int:
    """Measure checkpoints, write their ``metrics.json`` and print a table."""
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
    console.print(table)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
