"""Times on a board: nets alone, transfers apart, and what the vendor's own tool measures."""

from __future__ import annotations

import re
import shutil
import statistics
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Callable, Dict, List, Tuple

from .files.manifests import Net
from .sessions.board_memory import bits
from .sessions.board_session import SailSession
from .sessions.session import Arrays, Session, one_line

#: Loops of ``bmrt_test``; the first one is cold and left out.
LOOPS = 20
#: Lines that are kept per file where they are not as expected, and how much of each.
_KEPT_LINES, _KEPT_CHARACTERS = 20, 300
#: Where the SDK puts its command-line tools.
_TOOLS = "/opt/sophon/libsophon-current/bin"
#: What ``bmrt_test`` prints: a net's block begins, and the time of each of its stages in order.
_NET = re.compile(r"==> running network #\d+, name: (?P<net>.+), loop: (?P<loop>\d+)")
_TIME = re.compile(r"calculate\s+time\(s\):\s*(?P<seconds>[0-9]+\.[0-9]+)\s*$")
_COMPLAINT = re.compile(r"WARNING|WRONG|FATAL|error|calculate\s+time", re.IGNORECASE)

#: Milliseconds by net, one per stage.
StageTimes = Dict[str, List[float]]


def net_times(session: Session, name: str, net: Net, feeds: Arrays, loops: int) -> Dict[str, float]:
    """Median milliseconds of a net: ``latency_ms`` alone, ``transfer_ms`` of all its tensors.

    On a board the inputs lie in its memory and the outputs stay there; elsewhere a whole call is
    timed, and there is no ``transfer_ms``.
    """
    if not isinstance(session, SailSession):
        return {"latency_ms": _median_ms(partial(session.run, feeds, name), loops)}
    with session.exclusive():
        inputs, outputs = session.small_inputs(net, feeds, {}), session.outputs_of(net, {})
        # Not timed: the first launch is cold, and it proves that the net runs.
        session.process(net, inputs, outputs)
        held = [
            (inputs[spec.name], bits(session.memory.read(inputs[spec.name], spec)))
            for spec in net.inputs
        ]

        def transfers() -> None:
            for tensor, array in held:
                tensor.update_data(array)
            for spec in net.outputs:
                session.memory.read(outputs[spec.name], spec)

        return {
            "latency_ms": _median_ms(partial(session.launch, net, inputs, outputs), loops),
            "transfer_ms": _median_ms(transfers, loops),
        }


def _median_ms(call: Callable[[], object], loops: int) -> float:
    times = []
    for _ in range(loops):
        begin = time.perf_counter()
        call()
        times.append((time.perf_counter() - begin) * 1e3)
    return round(statistics.median(times), 4)


def bmrt_test(folder: Path, device: str) -> Tuple[Dict[str, StageTimes], Dict[str, List[str]]]:
    """What the vendor's own tool measures per BModel, and lines of it that are not as expected."""
    times: Dict[str, StageTimes] = {}
    kept: Dict[str, List[str]] = {}
    tool = shutil.which("bmrt_test")
    if tool is None:
        print(f"bmrt_test: not found, its times are left out; it is part of libsophon ({_TOOLS})")
        return times, kept
    for path in sorted(folder.glob("*/*.bmodel")):
        print(f"bmrt_test {path.name}", flush=True)
        try:
            done = subprocess.run(
                [tool, "--bmodel", str(path), "--devid", device, "--loopnum", str(LOOPS)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=600,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            print(f"bmrt_test {path.name}: left out ({one_line(error)})")
            continue
        times[path.name], lines = parsed(done.stdout.decode(errors="replace"))
        if done.returncode != 0 or not times[path.name]:
            print(f"bmrt_test {path.name}: exit code {done.returncode}")
            lines.append(f"exit code {done.returncode}")
        if lines:
            kept[path.name] = lines[-_KEPT_LINES:]
    return times, kept


def parsed(printed: str) -> Tuple[StageTimes, List[str]]:
    """Median milliseconds per net and stage over all loops but the first, and unexpected lines."""
    loops: Dict[Tuple[str, int], List[float]] = {}
    unexpected: List[str] = []
    net, loop, stage = "", 0, 0
    for line in printed.splitlines():
        begun, timed = _NET.search(line), _TIME.search(line)
        if begun:
            net, loop, stage = begun.group("net"), int(begun.group("loop")), 0
        elif timed and net:
            times = loops.setdefault((net, stage), [])
            # The first loop is cold: it counts only where there is no other.
            if loop == 1:
                times.clear()
            times.append(float(timed.group("seconds")) * 1e3)
            stage += 1
        elif _COMPLAINT.search(line):
            unexpected.append("".join(c if c.isprintable() else " " for c in line.strip()))
    found: StageTimes = {}
    for (name, _), times in sorted(loops.items(), key=lambda item: item[0][1]):
        found.setdefault(name, []).append(round(statistics.median(times), 4))
    return found, [line[:_KEPT_CHARACTERS] for line in unexpected]
