"""The tasks that a server answers with, on each of its targets."""

from __future__ import annotations

import argparse
import threading
from functools import partial
from typing import Any, Callable, Dict, List, Optional

import numpy as np

from ..cli.options import task_arguments
from ..decoding.batching import StopSignal
from ..errors import ArtifactError, BlipEdgeError, InputError
from ..tasks.artifacts import task_folder
from ..tasks.registry import TASKS
from ..tasks.task import Result, Task
from .batcher import Arrivals, Batcher, Job
from .metrics import Metrics
from .settings import ServerSettings

#: How long the threads of a batcher have to end after the last answer was sent.
_CLOSE_S = 10.0


class Model:
    """One task on one target, and its queue."""

    def __init__(
        self, task: Task[Any], arrivals: Arrivals, settings: ServerSettings, metrics: Metrics
    ) -> None:
        self.task = task
        measure = metrics.batches(task.task, task.artifacts.target)
        work = partial(_answer if task.task == "vqa" else _pairs, task)
        self.batcher = Batcher(work, arrivals, settings.batch_wait_s, measure)

    def load(self) -> None:
        """Loads every net, runs each once, and begins to work."""
        self.task.artifacts.load()
        image = np.zeros((8, 8, 3), dtype=np.uint8)
        self.task.ask(image, "a" if self.task.asks else None)
        self.batcher.start(self.task.concurrency(), self.task.images_at_once())


class Models:
    """Every task on every target; nets load in a thread."""

    def __init__(
        self,
        options: argparse.Namespace,
        targets: List[str],
        settings: ServerSettings,
        metrics: Metrics,
    ) -> None:
        """Opens the artifacts, which compares their digests.

        Raises:
            BlipEdgeError: artifacts or options that cannot be used.
        """
        self.targets = targets
        self.arrivals = Arrivals()
        self.failure: Optional[BaseException] = None
        self.ready = threading.Event()
        self._models: Dict[str, Dict[str, Model]] = {}
        names = [name for name in TASKS if _is_built(options.artifacts, name)]
        if not names:
            task_folder(options.artifacts, "caption")
        for target in targets:
            arguments = task_arguments(options, target)
            self._models[target] = {
                name: Model(
                    TASKS[name].from_artifacts(options.artifacts, **arguments),
                    self.arrivals,
                    settings,
                    metrics,
                )
                for name in names
            }
        self.tasks = names
        self.pipeline = self.of(names[0]).task.manifest.pipeline

    def of(self, task: str, target: Optional[str] = None) -> Model:
        """The model of a task.

        Raises:
            InputError: there is none.
        """
        target = self.targets[0] if target is None else target
        if target not in self._models:
            raise InputError(f"target {target!r}: this server has {', '.join(self.targets)}")
        if task not in self._models[target]:
            raise InputError(f"task {task}: this server has {', '.join(self._models[target])}")
        return self._models[target][task]

    @property
    def ids(self) -> Dict[str, str]:
        """Names that OpenAI's clients call the targets by, and the targets."""
        return {f"{self.pipeline}-{target}": target for target in self.targets}

    def load(self, failed: Callable[[], None]) -> None:
        """Loads everything, in a thread; ``failed`` is called where something cannot be loaded."""

        def run() -> None:
            try:
                for model in self._every():
                    model.load()
                self.ready.set()
            except BaseException as error:  # a panic of a library in Rust is no Exception
                self.failure = error
                failed()

        threading.Thread(target=run, name="load", daemon=True).start()

    def waiting(self) -> int:
        """Jobs in all queues."""
        return sum(model.batcher.waiting for model in self._every())

    def close(self) -> None:
        """Ends the work and releases what the backends hold."""
        for model in self._every():
            model.batcher.close(_CLOSE_S)
            model.task.close()

    def _every(self) -> List[Model]:
        return [model for models in self._models.values() for model in models.values()]


def _is_built(folder: str, task: str) -> bool:
    try:
        task_folder(folder, task)
    except ArtifactError:
        return False
    return True


def _pairs(task: Any, jobs: List[Job], stop: StopSignal) -> List[List[Result]]:
    images, texts = [job.image for job in jobs], [job.texts for job in jobs]
    found: List[List[Result]] = task.pairs(
        images, texts, stop=stop, **_streaming(jobs), **jobs[0].options
    )
    return found


def _answer(task: Any, jobs: List[Job], stop: StopSignal) -> List[List[Result]]:
    embeds = task.encode([job.image for job in jobs], stop=stop)
    questions = [job.texts[0] for job in jobs]
    found = task.answer(
        embeds, questions, range(len(jobs)), stop=stop, **_streaming(jobs), **jobs[0].options
    )
    return [[result] for result in found]


def _streaming(jobs: List[Job]) -> Dict[str, Any]:
    """What hands each new token to its job, where one of them wants it."""
    if not any(job.on_token for job in jobs):
        return {}

    def on_token(row: int, token: int) -> None:
        listener = jobs[row].on_token
        if listener is not None:
            listener(token)

    return {"on_token": on_token}


def explained(error: BaseException) -> str:
    """One line on an error for whoever runs the server."""
    return str(error) if isinstance(error, BlipEdgeError) else f"unexpected {error!r}"
