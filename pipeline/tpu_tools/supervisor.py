"""Runs a command, and ends it with everything that it started when standard input closes.

``supervisor.py PROGRAM [ARGUMENT ...]``; the exit code is the command's. Whoever starts this holds
the other end of the pipe: it closes when that process ends, in whatever way. The command's
processes cannot escape into sessions of their own, because orphans become this process's children.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
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


def _watch() -> None:
    os.read(sys.stdin.fileno(), 1)
    _end_all()
    os._exit(128 + signal.SIGKILL)


def main() -> None:
    """Runs the command of the command line."""
    ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    threading.Thread(target=_watch, daemon=True).start()
    code = process.wait()
    _end_all()
    if code < 0:
        # As a shell would not: whoever waits for us learns which signal it was.
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main()
