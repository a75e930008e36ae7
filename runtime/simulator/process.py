"""One simulator process: starting it, talking to it, and saying why it died."""

from __future__ import annotations

import contextlib
import os
import re
import select
import subprocess
import time
from pathlib import Path
from typing import Any, Dict, List, Mapping, NoReturn, Sequence, Tuple

import numpy as np

from ..errors import BackendError
from .protocol import read_message, write_message

_WORKER = Path(__file__).resolve().with_name("worker.py")
_START_TIMEOUT_SECONDS = 120.0
#: What the vendor's libraries, the loader and Python print before giving up.
_COMPLAINT = re.compile(r"FATAL|WRONG|error|GLIBC|assert", re.IGNORECASE)


class BModelTensor:
    """One input or output of a net, as the BModel declares it."""

    def __init__(self, described: Mapping[str, Any]) -> None:
        self.name: str = described["name"]
        self.shape: Tuple[int, ...] = tuple(described["shape"])
        #: the vendor's name: f32, f16, bf16, si32, si8, ...
        self.dtype: str = described["dtype"]
        #: numpy's name of the array that holds it; bf16 is held as the uint16 of its bits
        self.array_dtype: str = described["array_dtype"]
        #: quantisation; 1 and 0 where the tensor is not quantised
        self.scale: float = described["scale"]

    def __repr__(self) -> str:
        return f"{self.name} {self.dtype}{list(self.shape)}"


class BModelNet:
    """One net of a BModel: its tensors in order."""

    def __init__(self, described: Mapping[str, Any]) -> None:
        self.name: str = described["name"]
        self.inputs = [BModelTensor(tensor) for tensor in described["inputs"]]
        self.outputs = [BModelTensor(tensor) for tensor in described["outputs"]]


class SimulatorProcess:
    """A running simulator process and its pipes; not safe to share between threads."""

    def __init__(self, python: Path, bmodel: Path, chip: str, log: Path) -> None:
        """Starts the process and waits until it has loaded the file.

        Raises:
            BackendError: it cannot be started, or cannot load the file.
        """
        self.log = log
        self.label = f"simulator of {chip} for {bmodel.name}"
        self.owner = os.getpid()
        replies, reply_end = os.pipe()
        life_end, self._life = os.pipe()
        self._replies = replies
        command = [str(python), "-B", str(_WORKER), str(bmodel.resolve()), chip]
        command += [str(reply_end), str(life_end)]
        environment = {
            name: value
            for name, value in os.environ.items()
            if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LD_PRELOAD")
        }
        try:
            with log.open("ab") as output:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=output,
                    cwd=str(log.parent),
                    env=environment,
                    pass_fds=(reply_end, life_end),
                )
        except OSError as error:
            os.close(replies)
            os.close(self._life)
            raise BackendError(f"{self.label}: cannot start {python}: {error.strerror}") from None
        finally:
            os.close(reply_end)
            os.close(life_end)
        try:
            header, _ = self._receive(_START_TIMEOUT_SECONDS)
        except BaseException:
            self.kill()
            raise
        if "error" in header:
            self.kill()
            raise BackendError(f"{self.label}: {header['error']}; log: {log}")
        self.nets = {net["name"]: BModelNet(net) for net in header["nets"]}

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs and its pipes are in step."""
        return self._replies >= 0 and self._process.poll() is None

    def request(
        self, net: str, arrays: Sequence[np.ndarray], timeout_seconds: float
    ) -> List[np.ndarray]:
        """One call.

        On any failure, an interrupt included, the process is ended: its pipes are out of step.

        Raises:
            BackendError: the simulator refused the call, died, or did not answer in time.
        """
        assert self._process.stdin is not None  # noqa: S101 - PIPE was asked for
        try:
            try:
                write_message(self._process.stdin, {"net": net}, arrays)  # type: ignore[arg-type]
            except OSError:
                self._died()
            header, outputs = self._receive(timeout_seconds)
        except BaseException:
            self.kill()
            raise
        if "error" in header:
            raise BackendError(f"{self.label}: {header['error']}; log: {self.log}")
        return outputs

    def kill(self) -> None:
        """Ends the process at once and waits for it."""
        if self.owner != os.getpid():
            return  # after a fork the process belongs to the parent
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):  # what was not written yet has no reader any more
                self._process.stdin.close()
        for descriptor in (self._replies, self._life):
            if descriptor >= 0:
                os.close(descriptor)
        self._replies = self._life = -1

    def _receive(self, timeout_seconds: float) -> Tuple[Dict[str, Any], List[np.ndarray]]:
        deadline = time.monotonic() + timeout_seconds

        def read(count: int) -> bytes:
            data = bytearray()
            while len(data) < count:
                left = deadline - time.monotonic()
                if left <= 0 or not select.select([self._replies], [], [], left)[0]:
                    raise BackendError(
                        f"{self.label}: no answer in {timeout_seconds:g} s, process ended; "
                        f"log: {self.log}"
                    )
                piece = os.read(self._replies, min(count - len(data), 1 << 20))
                if not piece:
                    raise EOFError
                data += piece
            return bytes(data)

        try:
            return read_message(read)
        except (EOFError, ValueError):
            self._died()

    def _died(self) -> NoReturn:
        try:
            code = self._process.wait(timeout=5)
            how = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
        except subprocess.TimeoutExpired:
            how = "sent something unreadable"
        last = _reason(self.log)
        raise BackendError(f"{self.label} {how}: {last}; log: {self.log}") from None


def _reason(log: Path) -> str:
    """The first complaint in the log, else its last line."""
    try:
        with log.open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - 8192))
            lines = stream.read().decode(errors="replace").split("\n")
    except OSError:
        return "no log"
    said = [line.strip() for line in lines if line.strip()]
    complaints = [line for line in said if _COMPLAINT.search(line)]
    return (complaints or said[-1:] or ["it printed nothing"])[0]
