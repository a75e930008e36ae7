"""Runs BModel components on the vendor's chip simulator."""

from __future__ import annotations

from functools import partial
from typing import Dict, List, Union

import numpy as np

from ..errors import BackendError
from ..files.manifests import Net
from ..simulator.session import SimulatorSession
from .session import Session


class SimulatedSession(Session):
    """A component compiled for a SOPHON chip, on that chip's simulator: exact bits, no timing."""

    def _load(self) -> None:
        chip = self.manifest.target
        self._files: Dict[str, SimulatorSession] = {}
        for net in self.manifest.compiled_nets:
            if net.file not in self._files:
                path = self.manifest.folder / net.file
                self._files[net.file] = self._pool.take(path, partial(SimulatorSession, path, chip))

    def _execute(self, net: Net, arrays: List[np.ndarray]) -> List[np.ndarray]:
        feeds: Dict[Union[str, int], np.ndarray] = {
            spec.artifact_name: array for spec, array in zip(net.inputs, arrays)
        }
        with self.in_backend():
            outputs = self._files[net.file].run(net.artifact_net or net.name, feeds, stage=True)
        self.launches[net.name] += 1
        missing = [s.artifact_name for s in net.outputs if s.artifact_name not in outputs]
        if missing:
            raise BackendError(
                f"{self.manifest.folder / net.file}: no output '{missing[0]}' as in its manifest; "
                "rebuild it"
            )
        return [outputs[spec.artifact_name] for spec in net.outputs]

    def _unload(self) -> None:
        for file in self._files:
            self._pool.give_back(self.manifest.folder / file, SimulatorSession.close)
        self._files = {}
