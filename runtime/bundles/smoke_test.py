"""``python -m blip_edge.bundles.smoke_test FOLDER``: the sample's answer against the recorded one.

Exit code 0: the answer is the recorded one, or none was recorded; 1: it is another one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import List, Optional

from ..errors import BlipEdgeError
from ..tasks.registry import TASKS
from .format import Sample, read_description


def smoke_test(folder: Path, device: Optional[str] = None) -> int:
    """Answers a bundle's sample with its artifacts; returns the exit code."""
    described = read_description(folder)
    sample = described.sample
    with TASKS[described.task].from_artifacts(
        folder, target=described.target, precision=described.precision, device=device
    ) as task:
        limits = {"max_new_tokens": sample.new_tokens} if sample.new_tokens else {}
        (answer,) = task.ask([folder / sample.image], [sample.text], **limits)
        # With its prompt, as verification compared it.
        text = task.tokenizer.decode(answer.token_ids) if task.generates else ""
    if task.generates:
        shown, same = text, sample.expected in (None, text)
    else:
        shown, same = f"{answer.probability:.4f}", _close(answer.probability, sample)
    about = f" {sample.text!r}" if sample.text else ""
    print(f"{sample.image}{about}: {shown}")
    wanted = sample.expected if sample.probability is None else f"{sample.probability:.4f}"
    if wanted is None:
        print("nothing to compare with: this bundle is not verified")
    elif same:
        print("as recorded when the artifact was verified")
    else:
        print(f"error: verified as {wanted}; is it the same device and file?", file=sys.stderr)
        return 1
    return 0


def _close(probability: float, sample: Sample) -> bool:
    if sample.probability is None:
        return True
    # The recorded one and this one may each be as far from the checkpoint's as was allowed.
    return abs(probability - sample.probability) <= 2 * (sample.tolerance or 0.0)


def main(arguments: Optional[List[str]] = None) -> int:
    """Runs the smoke test; returns the exit code."""
    parser = argparse.ArgumentParser(prog="smoke_test", description="Answers a bundle's sample.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default=None, help="as of blip-edge")
    options = parser.parse_args(arguments)
    try:
        return smoke_test(options.folder, options.device)
    except BlipEdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
