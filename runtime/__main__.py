"""``blip-edge``: caption, answer and match on the command line."""

from __future__ import annotations

import io
import os
import sys
import warnings
from typing import List, Optional

from .cli.options import build_parser
from .cli.reports import say
from .errors import BlipEdgeError
from .sessions.session import one_line

_INTERRUPTED = 130
_DEBUG = "BLIP_EDGE_DEBUG"


def main(arguments: Optional[List[str]] = None) -> int:
    """Runs one command.

    Returns:
        0 done; 1 a backend or device failed; 2 bad input (other images were still worked on).
    """
    # Digests of sources follow import statements; importing the package would be all of it.
    parser = build_parser(sys.modules[str(__package__)].__version__)
    given = sys.argv[1:] if arguments is None else arguments
    if not given:
        parser.print_help()
        return 2
    options = parser.parse_args(given)
    for stream in (sys.stdout, sys.stderr):
        # What a terminal's encoding lacks is shown as an escape, not an error.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # Our own limit on pixels is below the size from which Pillow warns on standard error.
    warnings.simplefilter("ignore")
    try:
        code: int
        if options.command in ("devices", "info"):
            from .cli import information

            code = getattr(information, options.command)(options)
        elif options.command == "verify-bundle":
            from .bundles.check import verify_bundle

            code = verify_bundle(options)
        elif options.command in ("serve", "watch"):
            from .cli import services

            code = getattr(services, options.command)(options)
        elif options.command == "drafts":
            from .cli.drafts import drafts

            code = drafts(options)
        elif options.command == "completion":
            from .cli.completion import completion

            print(completion(parser, options.shell))
            code = 0
        elif options.command == "match":
            from .cli.matching import match

            code = match(options)
        else:
            from .cli.commands import COMMANDS

            code = COMMANDS[options.command](options)
        sys.stdout.flush()
        return code
    except BlipEdgeError as error:
        say(f"error: {error}", sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # The reader went away; without this, Python complains once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        say("interrupted", sys.stderr)
        return _INTERRUPTED
    except BaseException as error:
        # A panic of a library in Rust is no Exception.
        if isinstance(error, SystemExit) or os.environ.get(_DEBUG):
            raise
        kind = type(error).__name__
        advice = f"{_DEBUG}=1 shows where; please report it"
        say(f"error: unexpected {kind}: {one_line(error)}; {advice}", sys.stderr)
        return 1


def run() -> None:
    """Runs one command in a process of its own, and ends the process."""
    # OpenVINO's package imports its model converter if it can, which is a third of its import time.
    sys.modules.setdefault("openvino.tools.ovc", None)  # type: ignore[arg-type]
    sys.exit(main())


if __name__ == "__main__":
    run()
