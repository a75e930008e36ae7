"""Runs a command, and ends it with everything that it started when standard input closes.

``supervisor.py PROGRAM [ARGUMENT ...]``; the exit code is the command's. Whoever starts this holds
the other end of the pipe: it closes when that process ends, in whatever way. The command's
processes cannot escape into sessions of their own, because orphans become this process's children.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

_SET_CHILD_SUBREAPER = 36


def _children() -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The program's name stands in brackets and may hold anything.
            parent = entry.read_text(errors="replace").rpartition(")")[2].split()[1]
        except OSError:
            continue  # it ended meanwhile
        if int(parent) == os.getpid():
            found.append(int(entry.parent.name))
    return found


def _end_all() -> None:
    while True:
        for process in _children():
            os.kill(process, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _ends(process: "subprocess.Popen[bytes]", changes: int) -> bool:
    """Waits until the command ends (true) or standard input closes (false).

    One thread does all: two would reap each other's children, and kill what took their numbers.
    """
    while process.poll() is None:
        ready, _, _ = select.select([sys.stdin, changes], [], [])
        if sys.stdin in ready:
            return False
        os.read(changes, 1 << 12)
    return True


def main() -> None:
    """Runs the command of the command line."""
    ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    changes, changed = os.pipe()
    os.set_blocking(changed, False)
    signal.set_wakeup_fd(changed, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    ended = _ends(process, changes)
    _end_all()
    code = process.returncode if ended else -signal.SIGKILL
    if code < 0:
        # As a shell would not: whoever waits for us learns which signal it was.
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main()
