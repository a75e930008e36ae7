"""What a bundle is: the names of its files, and what ``bundle.json`` says (docs/bundles.md)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Optional

from ..errors import BlipEdgeError
from ..files.records import check_names, from_json

SCHEMA_VERSION = 1
KIND = "bundle"
DESCRIPTION_FILE = "bundle.json"
SUMS_FILE = "SHA256SUMS"
PROVENANCE_FILE = "attestations/provenance.json"
VERDICT_FILE = "attestations/verdict.json"
SBOM_FILE = "sbom.cdx.json"
#: the OpenSSF model signing format's own name
SIGNATURE_FILE = "model.sig"
WHEELS_FOLDER = "wheels"
ARCHIVE_SUFFIX = ".tar.gz"

#: Files that no statement is about: the statements, and what is made from them.
_ABOVE = (PROVENANCE_FILE, VERDICT_FILE, SUMS_FILE, SIGNATURE_FILE)


class BundleError(BlipEdgeError):
    """A bundle that is not what it says it is. Exit code 1."""


@dataclass(frozen=True)
class Sample:
    """A picture and what the verified artifact answered."""

    image: str
    #: caption prompt (may be empty), question, or the text to match
    text: str
    new_tokens: int
    #: the whole text; null where the bundle is not verified, and for matching
    expected: Optional[str] = None
    #: of matching: the probability, and how far it may be off
    probability: Optional[float] = None
    tolerance: Optional[float] = None

    def __post_init__(self) -> None:
        check_names("image", self.image)


@dataclass(frozen=True)
class Description:
    """``bundle.json``."""

    pipeline: str
    task: str
    target: str
    precision: str
    #: of blip-edge
    version: str
    #: whether every check of verification passed for exactly these files
    verified: bool
    #: Python and processor of the wheels that are enclosed, e.g. ``cp38-aarch64``
    wheels: Optional[str]
    sample: Sample

    @property
    def name(self) -> str:
        """Name of the bundle: of its folder in the archive, and of the archive."""
        return bundle_name(self.pipeline, self.task, self.target, self.precision, self.version)


def bundle_name(*parts: str) -> str:
    """Pipeline, task, target, precision and version as a name."""
    return "-".join(parts)


def read_json(path: Path) -> Dict[str, Any]:
    """A JSON object of a bundle.

    Raises:
        BundleError: missing, or no JSON object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleError(f"{path.name}: missing; this is no whole bundle") from None
    except OSError as error:
        raise BundleError(f"{path.name}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise BundleError(f"{path.name}: damaged, not JSON; get the bundle again") from None
    if not isinstance(found, dict):
        raise BundleError(f"{path.name}: damaged, not a JSON object; get the bundle again")
    return found


def read_description(folder: Path) -> Description:
    """Reads ``bundle.json``.

    Raises:
        BundleError: missing, damaged, or of another version.
    """
    data = read_json(folder / DESCRIPTION_FILE)
    version, kind = data.pop("schema_version", None), data.pop("kind", None)
    if (version, kind) != (SCHEMA_VERSION, KIND):
        raise BundleError(
            f"{DESCRIPTION_FILE}: not a bundle of schema_version {SCHEMA_VERSION}; "
            "check it with the blip-edge that it encloses"
        )
    try:
        return from_json(Description, data)
    except ValueError as error:
        raise BundleError(f"{DESCRIPTION_FILE}: damaged ({error})") from None


def is_subject(name: str) -> bool:
    """Whether the statements of a bundle must name this file."""
    return name not in _ABOVE
