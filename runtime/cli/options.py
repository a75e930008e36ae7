"""Command-line options of ``blip-edge``."""

from __future__ import annotations

import argparse
import os
from dataclasses import fields
from pathlib import Path
from typing import Any, Dict, List, NoReturn, Optional, Tuple

from ..errors import InputError
from ..files.image_names import MAXIMUM_PIXELS
from ..generation.settings import TRUNCATED_TOKENS, GenerationSettings
from ..sessions.session import MODE_CHOICES, PERFORMANCE_HINTS
from ..tasks.artifacts import HOST_TARGETS, OPENVINO_TARGETS, check_device, default_target, fits
from .reports import printable

#: An unpacked bundle has this file (runtime/bundles/format.py).
BUNDLE = "bundle.json"
DEFAULT_ARTIFACTS = os.environ.get("BLIP_EDGE_ARTIFACTS") or (
    "." if Path(BUNDLE).is_file() else "models/artifacts/reference"
)

#: Of a server, for the next question about a picture.
_SERVED_MIB = 64
#: The task of each command that runs one.
_TASKS = {"caption": "caption", "vqa": "vqa", "match": "itm"}
#: ``runtime.tasks.matching`` has their meaning; other commands do not load it.
_RANKINGS = ("itm", "itc", "sum")
_OPENVINO_ONLY = ("mode", "performance_hint", "cache", "no_cache")
#: Arguments of generation that do nothing without another one.
_NEEDED = {
    "temperature": "do_sample",
    "top_k": "do_sample",
    "top_p": "do_sample",
    "seed": "do_sample",
    "length_penalty": "num_beams",
    "early_stopping": "num_beams",
}


class _Parser(argparse.ArgumentParser):
    """What it quotes of a command line reaches a terminal."""

    def error(self, message: str) -> NoReturn:
        """See ``argparse``."""
        super().error(printable(message))


def build_parser(version: str) -> argparse.ArgumentParser:
    """The parser of all subcommands."""
    parser = _Parser(
        prog="blip-edge",
        description="Captions images, answers questions about them and matches them with texts, on "
        "onnxruntime, OpenVINO and SOPHON chips.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version}")
    commands = parser.add_subparsers(dest="command", metavar="command")
    commands.required = True

    caption = commands.add_parser("caption", help="describe images")
    _add_images(caption, "prompt")
    caption.add_argument("--prompt", default=None, help="words the caption starts with")
    caption.add_argument(
        "--prompt-file", type=Path, help="a prompt per line, one for each image, in their order"
    )
    caption.add_argument(
        "--score",
        action="append",
        default=[],
        metavar="CAPTION",
        help="say how likely this caption is, instead of writing one; may be repeated",
    )
    _add_generation(caption)
    _add_sidecar(caption)
    _add_output(caption)

    answer = commands.add_parser("vqa", help="answer questions about images")
    _add_images(answer, "question")
    answer.add_argument(
        "--question",
        action="append",
        default=[],
        help="a question, asked of every image; may be repeated; without any, questions are read "
        "line by line",
    )
    answer.add_argument(
        "--answers",
        type=Path,
        metavar="FILE",
        help="choose among the answers of this file, one per line, as BLIP's own evaluation does",
    )
    answer.add_argument(
        "--answer-candidates",
        type=_at_least_one,
        metavar="K",
        help="with --answers: score the K whole whose first token is most likely (128)",
    )
    _add_truncation(answer)
    _add_generation(answer)
    _add_output(answer)

    match = commands.add_parser("match", help="score or rank texts against images")
    _add_images(match, "text")
    match.add_argument("--text", action="append", default=[], help="a text; may be repeated")
    match.add_argument("--texts", type=Path, help="file with one text per line")
    match.add_argument(
        "--top-k",
        type=int,
        default=None,
        help="rank by cosine and let the matching head score only the best K (default: score all); "
        "with --load, print the best K images of each text",
    )
    match.add_argument(
        "--rank-by",
        choices=_RANKINGS,
        default=_RANKINGS[0],
        help="itm: the matching head's probability; itc: the cosine alone; sum: as BLIP's own "
        "retrieval, the head's logit plus the cosine (%(default)s)",
    )
    match.add_argument(
        "--threshold",
        type=float,
        metavar="SCORE",
        help="leave out what --rank-by scores lower",
    )
    match.add_argument(
        "--per-text", action="store_true", help="sort the images of each text, not texts of images"
    )
    match.add_argument(
        "--save", type=Path, metavar="FILE", help="keep the images' features in this .npz file"
    )
    match.add_argument(
        "--load", type=Path, metavar="FILE", help="search the images of such a file, by cosine"
    )
    _add_truncation(match)
    _add_output(match)

    for name, text in (("caption", caption), ("vqa", answer), ("match", match)):
        _add_backend(text)
        text.set_defaults(command=name)

    _add_serve(commands.add_parser("serve", help="answer over HTTP, with a page to try it on"))
    watch = commands.add_parser("watch", help="caption the images that arrive in a folder")
    _add_watch(watch)
    drafts = commands.add_parser(
        "drafts", help="make a table of what texts mostly say, so that fewer passes are needed"
    )
    drafts.add_argument("texts", type=Path, help="file with one caption or answer per line")
    drafts.add_argument("--task", choices=("caption", "vqa"), default="caption")
    drafts.add_argument(
        "--artifacts", default=DEFAULT_ARTIFACTS, help="pipeline or task folder (%(default)s)"
    )

    devices = commands.add_parser("devices", help="list what artifacts can run on here")
    devices.add_argument("--json", action="store_true", help="one JSON object per line")

    bundle = commands.add_parser("verify-bundle", help="check a bundle that make bundle wrote")
    bundle.add_argument("bundle", help="the .tar.gz file, or the folder that it was unpacked to")
    bundle.add_argument(
        "--key", type=Path, default=None, help="public key that the bundle must be signed with"
    )
    bundle.add_argument(
        "--allow-unverified", action="store_true", help="accept one made with UNVERIFIED=1"
    )
    completion = commands.add_parser("completion", help="print a script that completes commands")
    completion.add_argument("shell", choices=("bash", "zsh"))

    info = commands.add_parser("info", help="describe an artifact folder")
    info.add_argument(
        "folder", nargs="?", default=DEFAULT_ARTIFACTS, help="task or pipeline folder"
    )
    info.add_argument("--target", default=None, help="only this target")
    info.add_argument("--heap-mib", type=int, default=None, help="the board's NPU heap in MiB")
    info.add_argument("--verify-digest", action="store_true", help="compare files with digests")
    info.add_argument("--json", action="store_true", help="one JSON object per line")
    return parser


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def _add_serve(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("server")
    group.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    group.add_argument("--port", type=int, default=8000, help="0 takes a free one (%(default)s)")
    group.add_argument(
        "--token-file",
        type=Path,
        default=None,
        help="file with the token that clients send (default: BLIP_EDGE_TOKEN of the environment)",
    )
    group.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name that clients call this server by; may be repeated (addresses: always)",
    )
    limits: List[Tuple[str, Any, Any, str]] = [
        ("--queue", int, 64, "most requests at a time; more are answered 503"),
        ("--max-bytes", int, 20 << 20, "most bytes of a picture"),
        ("--timeout", float, 60.0, "most seconds per request"),
        ("--batch-wait", float, 0.005, "seconds a batch waits for pictures being decoded"),
    ]
    for flag, kind, default, text in limits:
        group.add_argument(flag, type=kind, default=default, help=f"{text} (%(default)s)")
    _add_pixels(group)
    _add_truncation(parser)
    _add_backend(parser)
    parser.set_defaults(command="serve", image_cache=_SERVED_MIB)


def _add_watch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="folder to watch")
    parser.add_argument("--recursive", action="store_true", help="look into folders in folders")
    parser.add_argument("--prompt", default=None, help="words each caption starts with")
    parser.add_argument(
        "--output", type=Path, default=None, help="append JSON lines to this file (default: print)"
    )
    parser.add_argument(
        "--interval", type=float, default=1.0, help="seconds between two looks (%(default)s)"
    )
    parser.add_argument(
        "--once", action="store_true", help="end when everything that is there has its caption"
    )
    _add_pixels(parser)
    _add_generation(parser)
    _add_backend(parser)
    parser.set_defaults(command="watch")


def _add_images(parser: argparse.ArgumentParser, column: Optional[str] = None) -> None:
    parser.add_argument(
        "images",
        nargs="*",
        help="image files, folders of images, patterns such as 'a/**/*.jpg', or - for standard "
        "input",
    )
    parser.add_argument("--recursive", action="store_true", help="look into folders in folders")
    _add_pixels(parser)
    parser.set_defaults(csv=None)
    if column is not None:
        parser.add_argument(
            "--csv",
            type=Path,
            default=None,
            help=f"table with the columns image and {column}, one {column} per row; its images lie "
            "beside it, or in the one folder named",
        )


def _add_pixels(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--max-pixels",
        type=_at_least_one,
        default=MAXIMUM_PIXELS,
        metavar="PIXELS",
        help="larger images are reported, not decoded; each takes up to 8 bytes per pixel "
        "(%(default)s)",
    )
    parser.add_argument(
        "--image-cache",
        type=_at_least_one,
        metavar="MIB",
        help="memory for what was made of the latest images, so that one that comes again takes no "
        "vision (default: none; of a server 64)",
    )


def _add_truncation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--truncate",
        action="store_true",
        help=f"cut texts after {TRUNCATED_TOKENS} tokens as BLIP's own code does, or where the "
        "artifact takes no more (default: report longer ones)",
    )


def _add_backend(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("backend")
    group.add_argument(
        "--artifacts", default=DEFAULT_ARTIFACTS, help="pipeline or task folder (%(default)s)"
    )
    group.add_argument(
        "--target",
        default=None,
        help="onnx, openvino or a chip, e.g. bm1684x (openvino, or the only one that is there)",
    )
    group.add_argument(
        "--precision",
        default=None,
        help="of the artifacts, e.g. f32, f16, w8f16 (default: what is there)",
    )
    group.add_argument(
        "--device",
        default=None,
        help="OpenVINO device (CPU, GPU, NPU, AUTO; default CPU); for a chip its number or "
        "'simulator'; 'blip-edge devices' lists what there is",
    )
    group.add_argument("--mode", choices=MODE_CHOICES, help="OpenVINO arithmetic (exact)")
    group.add_argument(
        "--performance-hint", choices=PERFORMANCE_HINTS, help="OpenVINO hint (latency)"
    )
    group.add_argument(
        "--cache",
        default=None,
        help="keeps compiled OpenVINO models (the user's cache)",
    )
    group.add_argument(
        "--no-cache",
        action="store_const",
        const=True,
        help="compile OpenVINO models every time",
    )
    group.add_argument(
        "--batch", type=int, default=None, help="images worked on at once (default: by memory)"
    )
    group.add_argument("--threads", type=int, default=None, help="CPU threads per call")
    group.add_argument(
        "--no-verify-digest", action="store_true", help="load files without comparing digests"
    )
    group.add_argument(
        "--rehash",
        action="store_true",
        help="compare digests even of files that were compared before and have not changed since",
    )
    group.add_argument("--compare", default=None, help="targets to compare, e.g. openvino,bm1684x")


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="one JSON object per line")
    group.add_argument("--show", type=Path, default=None, help="draw images with text to this file")
    group.add_argument(
        "--attention",
        type=Path,
        default=None,
        metavar="FILE",
        help="draw what each word of one text looks at in one image to this file",
    )
    group.add_argument(
        "--font",
        type=Path,
        default=None,
        help="TrueType or OpenType font for words in drawn pictures",
    )
    group.add_argument("--timing", action="store_true", help="mean time per stage")


def _add_sidecar(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("captions beside the images")
    group.add_argument(
        "--sidecar", metavar="txt", help="write each caption to a file beside its image, so ending"
    )
    group.add_argument("--prefix", default=None, help="what such a file begins with")
    group.add_argument("--suffix", default=None, help="what it ends with")
    group.add_argument(
        "--existing",
        choices=("skip", "overwrite"),
        default=None,
        help="images that have such a file already (skip: a run goes on where one ended)",
    )


def _add_generation(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("generation (as in HuggingFace generate)")
    for item in fields(GenerationSettings):
        flag, meaning = _flag(item.name), item.metadata.get("help", "")
        if item.default is not None and not isinstance(item.default, bool):
            meaning += f" ({item.default})"
        if item.name == "output_scores":
            group.add_argument(
                "--confidence",
                flag,
                dest=item.name,
                action="store_true",
                default=None,
                help="say how sure the model is of each text, even where that takes longer",
            )
        elif item.name == "bad_words_ids":
            # Words are easier to write.
            continue
        elif item.name == "bad_words":
            group.add_argument(flag, action="append", metavar="WORDS", help=meaning)
        elif item.name == "suppress_tokens":
            group.add_argument(flag, type=_ids, metavar="ID,ID", help=meaning)
        elif item.name == "do_sample":
            group.add_argument(flag, action="store_true", default=None, help=meaning)
        elif item.name == "early_stopping":
            choices = ("true", "false", "never")
            group.add_argument(flag, choices=choices, default=None, help=meaning)
        else:
            kind = float if isinstance(item.default, float) else int
            group.add_argument(flag, type=kind, default=None, metavar=kind.__name__, help=meaning)


def _ids(text: str) -> List[int]:
    return [int(part) for part in text.split(",")]


def generation_arguments(options: argparse.Namespace) -> Dict[str, Any]:
    """The generation arguments that were given.

    Raises:
        InputError: an argument that would do nothing beside the others.
    """
    given = {
        item.name: getattr(options, item.name)
        for item in fields(GenerationSettings)
        if getattr(options, item.name, None) is not None
    }
    if "early_stopping" in given:
        given["early_stopping"] = {"true": True, "false": False}.get(
            given["early_stopping"], "never"
        )
    for name in given:
        needed = _NEEDED.get(name)
        searches = given.get("num_beams", 1) > 1 if needed == "num_beams" else needed in given
        if needed is not None and not searches:
            raise _idle(name, f"without {_flag(needed)}")
    if given.get("draft_tokens") and ("do_sample" in given or given.get("num_beams", 1) > 1):
        raise _idle("draft_tokens", "beside --do-sample or --num-beams")
    if "max_length" in given and "max_new_tokens" in given:
        raise _idle("max_length", "beside --max-new-tokens")
    return given


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _idle(name: str, where: str) -> InputError:
    return InputError(f"{_flag(name)}: does nothing {where}; leave it out")


def task_arguments(options: argparse.Namespace, target: str) -> Dict[str, Any]:
    """Keyword arguments of ``Task.from_artifacts`` for one target."""
    # Of targets that are compared, a device is that of those it could belong to.
    applies = options.compare is None or options.device is None or fits(target, options.device)
    return {
        "target": target,
        "precision": options.precision,
        "device": options.device if applies else None,
        "mode": options.mode or MODE_CHOICES[0],
        "performance_hint": options.performance_hint or PERFORMANCE_HINTS[0],
        "cache_folder": False if options.no_cache else options.cache,
        "threads": options.threads,
        "batch": options.batch,
        "verify_digest": not options.no_verify_digest,
        "rehash": options.rehash,
        "maximum_pixels": options.max_pixels,
        "image_cache_bytes": (options.image_cache or 0) << 20,
        "truncate": getattr(options, "truncate", False),
    }


def targets(options: argparse.Namespace) -> List[str]:
    """The targets to run: those to compare, or the one chosen.

    Raises:
        InputError: none, or options that do nothing on any of them.
    """
    names = _named_targets(options)
    for name in _OPENVINO_ONLY:
        if getattr(options, name) is not None and not any(n in OPENVINO_TARGETS for n in names):
            raise _idle(name, f"on {', '.join(names)}")
    if options.threads is not None and not any(name in HOST_TARGETS for name in names):
        raise _idle("threads", f"on {', '.join(names)}")
    if options.no_cache and options.cache is not None:
        raise _idle("cache", "beside --no-cache")
    if options.rehash and options.no_verify_digest:
        raise _idle("rehash", "beside --no-verify-digest")
    return names


def _named_targets(options: argparse.Namespace) -> List[str]:
    if options.compare is None:
        # A server runs every task that is there.
        tasks = [_TASKS[options.command]] if options.command in _TASKS else _TASKS.values()
        found = (default_target(options.artifacts, task) for task in tasks)
        return [options.target or next((n for n in found if n not in OPENVINO_TARGETS), "openvino")]
    if options.target is not None:
        raise _idle("target", "beside --compare")
    names = [name.strip() for name in options.compare.split(",") if name.strip()]
    if not names:
        raise InputError("--compare: name at least one target, e.g. openvino,bm1684x")
    if options.device is not None and not any(fits(name, options.device) for name in names):
        check_device(names[0], options.device)
    return names
