"""Runs one BModel on the vendor's chip simulator and answers run requests over pipes.

A program of the TPU-MLIR environment (Python 3.10), started by ``process.py``::

    python worker.py MODEL.bmodel CHIP REPLY_FD LIFE_FD

Requests come on standard input, replies go to ``REPLY_FD`` (``protocol.py``); everything
that the simulator prints goes to standard output, which the session points at a log. One process
serves one file: two BModels loaded in one process answer wrongly (BM1684X) or crash (BM1684).
"""

import contextlib
import ctypes
import fcntl
import importlib
import importlib.util
import math
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any, BinaryIO, Dict, Iterator, List, Optional

# Our folder leaves the search path at once: its module names are not meant for the vendor's code.
_FOLDER = str(Path(__file__).resolve().parent)
sys.path[:] = [_FOLDER] + [entry for entry in sys.path if entry != _FOLDER]
import protocol  # type: ignore[import-not-found]  # noqa: E402
from scheduling import Scheduling  # type: ignore[import-not-found]  # noqa: E402

sys.path.remove(_FOLDER)

#: ``vendor`` leaves the simulator's waits alone, for comparison.
WAITS_VARIABLE = "BLIP_EDGE_SIMULATOR_WAITS"
LINK_FOLDER_VARIABLE = "BLIP_EDGE_SIMULATOR_LINKS"


class WorkerError(Exception):
    """A request or a set-up that cannot work, in words for the user."""


def _package() -> Path:
    found = importlib.util.find_spec("tpu_mlir")
    if found is None or not found.submodule_search_locations:
        raise WorkerError(f"{sys.executable} has no tpu_mlir; run make setup-tpu")
    return Path(next(iter(found.submodule_search_locations)))


def _restart_with_chip(package: Path, chip: str) -> None:
    """Starts this program again with the chip's simulator as its private ``libcmodel.so``.

    The driver library opens whatever is called ``libcmodel.so``, and some chips have a driver of
    their own. The vendor's tools flip shared links in the installation, so two chips cannot be
    simulated at once; links per process can.
    """
    library = package / "lib" / f"libcmodel_{chip}.so"
    if not library.is_file():
        known = sorted(path.stem[10:] for path in library.parent.glob("libcmodel_*.so"))
        raise WorkerError(f"no simulator for chip '{chip}'; this tpu_mlir has {', '.join(known)}")
    links = tempfile.mkdtemp(prefix="blip-edge-simulator-")
    Path(links, "libcmodel.so").symlink_to(library)
    for name in (f"libbmlib_{chip}.so.0", "libbmlib.so"):
        driver = package / "lib" / name
        if driver.is_file():
            Path(links, "libbmlib.so.0").symlink_to(driver)
            break
    search = [links, str(package / "lib"), str(package / "lib" / "third_party")]
    os.environ["LD_LIBRARY_PATH"] = os.pathsep.join(search)
    os.environ[LINK_FOLDER_VARIABLE] = links
    # Nothing here computes in parallel; threads of numpy's own would only be in the way.
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    os.execv(sys.executable, [sys.executable, "-B", *sys.argv])  # noqa: S606 - ourselves


def _die_with_parent(life: int) -> None:
    """Ends this process when the session's end of the life pipe closes, even inside a call.

    A running call holds Python's lock, so no thread of ours could watch; the kernel's signal needs
    none.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the session's to handle
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(life, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(life, fcntl.F_SETFL, fcntl.fcntl(life, fcntl.F_GETFL) | os.O_ASYNC | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        if os.read(life, 1) == b"":  # closed before the signal was armed
            os._exit(1)


def _described(tensor: Any) -> Dict[str, Any]:
    return {
        "name": tensor.name,
        "shape": list(tensor.data.shape),
        "dtype": tensor.dtype,
        "array_dtype": tensor.data.dtype.name,
        "scale": tensor.qscale,
    }


def _relieved(chip: ctypes.CDLL, driver: ctypes.CDLL) -> Optional[Scheduling]:
    """Redirected waits, or None where they stay the vendor's: slow, and otherwise the same."""
    if os.environ.get(WAITS_VARIABLE) == "vendor":
        return None
    try:
        scheduling = Scheduling()
        redirected = scheduling.relieve(chip, driver)
    except OSError as error:  # e.g. a system that forbids executable memory
        print(f"waits not redirected, calls will be slow: {error}", flush=True)
        return None
    print(f"waits redirected: {redirected}", flush=True)
    return scheduling


class Simulator:
    """One loaded BModel and its nets."""

    def __init__(self, package: Path, model: str, links: str) -> None:
        # Loaded first: the driver library's own request for "libcmodel.so" then gets this one.
        chip, driver = ctypes.CDLL("libcmodel.so"), ctypes.CDLL("libbmlib.so.0")
        shutil.rmtree(links, ignore_errors=True)
        self._scheduling = _relieved(chip, driver)
        sys.path.append(str(package / "python"))
        vendor = importlib.import_module("pyruntime_bm")
        # Kept for as long as the process lives: nets refer to it.
        with self._busy():
            self._model = vendor.Model(model, 0, "")
            self._nets = {name: self._model.Net(name) for name in self._model.networks}

    def describe(self) -> List[Dict[str, Any]]:
        """Names, shapes, dtypes and scales of every net's inputs and outputs."""
        return [
            {
                "name": name,
                "inputs": [_described(tensor) for tensor in net.inputs],
                "outputs": [_described(tensor) for tensor in net.outputs],
            }
            for name, net in self._nets.items()
        ]

    def run(self, name: str, arrays: List[Any]) -> List[Any]:
        """Runs a net on arrays in the order, shape and dtype of its inputs.

        Raises:
            WorkerError: no such net, or arrays that do not fit it.
        """
        if name not in self._nets:
            raise WorkerError(f"no net '{name}'; there are: {', '.join(self._nets)}")
        net = self._nets[name]
        inputs = list(net.inputs)
        if len(arrays) != len(inputs):
            raise WorkerError(f"net '{name}' has {len(inputs)} inputs, {len(arrays)} given")
        for tensor, array in zip(inputs, arrays):
            if tensor.data.size < array.size or tensor.data.dtype != array.dtype:
                raise WorkerError(
                    f"net '{name}', input '{tensor.name}': {array.dtype}{list(array.shape)} given, "
                    f"it is {tensor.data.dtype}{list(tensor.data.shape)}"
                )
            # A smaller stage reads the beginning of the buffer, which the largest one sized.
            tensor.data.reshape(-1)[: array.size] = array.reshape(-1)
        if all(tensor.data.shape == array.shape for tensor, array in zip(inputs, arrays)):
            with self._busy():
                net.forward()
            return [tensor.data.copy() for tensor in net.outputs]
        with self._busy():
            shapes = net.forward_dynamic([list(array.shape) for array in arrays])
        return [
            tensor.data.reshape(-1)[: math.prod(shape)].reshape(shape).copy()
            for tensor, shape in zip(net.outputs, shapes)
        ]

    @contextlib.contextmanager
    def _busy(self) -> Iterator[None]:
        if self._scheduling is None:
            yield
            return
        self._scheduling.busy()
        try:
            yield
        finally:
            self._scheduling.idle()


def _read_exactly(count: int) -> bytes:
    data = sys.stdin.buffer.read(count)
    if len(data) != count:
        raise EOFError
    return data


def _serve(simulator: Simulator, replies: BinaryIO) -> None:
    while True:
        try:
            header, arrays = protocol.read_message(_read_exactly)
        except EOFError:
            return
        try:
            outputs = simulator.run(header["net"], arrays)
        except WorkerError as error:
            protocol.write_message(replies, {"error": str(error)})
            continue
        protocol.write_message(replies, {}, outputs)


def main() -> None:
    """Loads the BModel on the command line, says what it holds, serves until the input ends."""
    model, chip, reply, life = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    _die_with_parent(life)
    links = os.environ.pop(LINK_FOLDER_VARIABLE, None)
    # Closed on any exit, also one deep in the simulator: the session sees the end of the stream.
    with os.fdopen(reply, "wb", closefd=links is not None) as replies:
        try:
            package = _package()
            if links is None:
                _restart_with_chip(package, chip)
                return
            simulator = Simulator(package, model, links)
        except (WorkerError, ImportError, RuntimeError, OSError) as error:
            protocol.write_message(replies, {"error": str(error).splitlines()[0]})
            return
        protocol.write_message(replies, {"nets": simulator.describe()})
        _serve(simulator, replies)


if __name__ == "__main__":
    main()
    # The simulator's threads are still alive: skip the interpreter's tear-down of what they use.
    sys.stdout.flush()
    os._exit(0)
