"""Features of many images, kept in a file: texts find images again without encoding them anew."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple, Union

import numpy as np

from ..errors import InputError
from ..files.whole_files import write_whole
from .artifacts import Artifacts

_VERSION = 1
#: What decides the features of an image or of a text.
_COMPONENTS = ("vision_encoder", "vision_projection", "text_encoder_unimodal")
#: Names beyond this many characters in all, or a longer description, are not read.
_MOST_BYTES = 1 << 28


@dataclass(frozen=True)
class ImageIndex:
    """Contrastive features of images, and what made them; ``Matcher.search`` finds images in it."""

    names: Tuple[str, ...]
    #: ``[images, features]`` float32 of unit length
    features: "np.ndarray"
    #: target, precision, mode, the checkpoint's digest and that of each component
    made_by: Mapping[str, Any]

    def best(
        self, text_features: np.ndarray, top_k: Optional[int]
    ) -> List[List[Tuple[int, float]]]:
        """For each text the images that fit it best, and their cosines."""
        cosine = self.features @ text_features.T
        orders = np.argsort(-cosine, axis=0, kind="stable")[:top_k]
        return [
            [(int(image), float(cosine[image, text])) for image in orders[:, text]]
            for text in range(cosine.shape[1])
        ]

    def save(self, path: Union[str, Path]) -> None:
        """Writes a ``.npz`` file, without pickled objects; the same images give the same bytes.

        Raises:
            InputError: it cannot be written.
        """
        description = {
            "schema_version": _VERSION,
            "names": list(self.names),
            "made_by": dict(self.made_by),
        }
        text = json.dumps(description, sort_keys=True).encode()
        buffer = io.BytesIO()
        np.savez(buffer, description=np.frombuffer(text, dtype=np.uint8), features=self.features)
        write_whole(Path(path), buffer.getvalue())

    @classmethod
    def load(cls, path: Union[str, Path]) -> "ImageIndex":
        """Reads what ``save`` wrote.

        Raises:
            InputError: missing, damaged, or of a later version.
        """
        try:
            with zipfile.ZipFile(str(path)) as file:
                # What is stored as it is cannot be larger than the file.
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in file.infolist()):
                    raise ValueError("compressed")
            with np.load(str(path), allow_pickle=False) as arrays:
                features, text = arrays["features"], arrays["description"]
            if text.dtype != np.uint8 or text.nbytes > _MOST_BYTES:
                raise ValueError("no description")
            index = _described(features, json.loads(text.tobytes().decode()))
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
        except (ValueError, KeyError, TypeError, zipfile.BadZipFile, EOFError) as error:
            reason = " ".join(str(error).split())[:80] or type(error).__name__
            raise InputError(
                f"{path}: no file of image features ({reason}); write one with match --save"
            ) from None
        return index


def _described(features: np.ndarray, description: Any) -> ImageIndex:
    version = description["schema_version"]
    if version != _VERSION:
        raise ValueError(f"schema_version {version!r:.20}, this version reads {_VERSION}")
    names, made_by = description["names"], description["made_by"]
    if not isinstance(made_by, dict) or not all(isinstance(name, str) for name in names):
        raise ValueError("names")
    if features.dtype != np.float32 or features.ndim != 2 or len(features) != len(names):
        raise ValueError(f"features {features.dtype} {list(features.shape)}, {len(names)} names")
    if not np.isfinite(features).all():
        raise ValueError("features are not finite")
    return ImageIndex(tuple(names), features, made_by)


def made_by(artifacts: Artifacts) -> Dict[str, Any]:
    """What decides features: the checkpoint, the artifacts' files, and how they are run."""
    session = artifacts.session("vision_encoder")
    return {
        "target": artifacts.target,
        "precision": artifacts.precision,
        "mode": session.options.mode if artifacts.target.startswith("openvino") else "",
        "checkpoint": artifacts.manifest.checkpoint.weights_sha256,
        "artifacts": {name: _digest(artifacts, name) for name in _COMPONENTS},
    }


def _digest(artifacts: Artifacts, component: str) -> str:
    """One digest of the files that a component runs from."""
    files = artifacts.session(component).manifest.runtime_files
    listed = sorted((name, record.sha256) for name, record in files.items())
    return sha256(json.dumps(listed).encode()).hexdigest()


def check_made_by(index: ImageIndex, artifacts: Artifacts, size: int, *, strict: bool) -> None:
    """Compares what made an index with what is to make the features of texts.

    Args:
        index: the features of images.
        artifacts: what reads the texts.
        size: numbers in a feature.
        strict: the artifacts must be the same, not only of one checkpoint.

    Raises:
        InputError: they do not belong together.
    """
    mine, theirs = made_by(artifacts), index.made_by
    if mine["checkpoint"] != theirs.get("checkpoint") or index.features.shape[1:] != (size,):
        raise InputError("image features: of another checkpoint; embed the images again")
    if strict and mine != theirs:
        parts = [theirs.get("target"), theirs.get("precision"), theirs.get("mode")]
        there = " ".join(str(part) for part in parts if part)
        here = " ".join(filter(None, [mine["target"], mine["precision"], mine["mode"]]))
        raise InputError(
            f"image features: made by other artifacts ({there}; these are {here}); embed the "
            "images again, or accept those of the same checkpoint (--no-verify-digest)"
        )
