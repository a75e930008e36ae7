"""What the vision encoder made of the latest images: another text about one takes no vision."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np

from ..preprocessing.images import ImageFile, ImageSource, PreparedImage, read_image
from ..preprocessing.processor import ImagePreprocessor

_NO_PIXELS = np.empty(0, dtype=np.float32)


class ImageCache:
    """States of images by digest of their content, in bounded memory; the oldest used go first.

    A file is known by its bytes, so that it is not even decoded again; other images by their
    pixels as the net takes them. Objects may be shared between threads.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._kept: "OrderedDict[bytes, Tuple[Any, int]]" = OrderedDict()
        self._bytes = 0

    def prepare(self, source: ImageSource, preprocessor: ImagePreprocessor) -> PreparedImage:
        """An image with its key, and with its states if they are known.

        Raises:
            InputError: the image is missing, damaged or too large.
        """
        source = read_image(source)
        key = hashlib.sha256(source.content).digest() if isinstance(source, ImageFile) else None
        states = None if key is None else self._get(key)
        if states is not None:
            return PreparedImage(_NO_PIXELS, key, states)
        pixels = preprocessor.prepare(source).pixels
        if key is None:
            key = hashlib.sha256(np.ascontiguousarray(pixels).data).digest()
        return PreparedImage(pixels, key, self._get(key))

    def states(
        self,
        images: Sequence[PreparedImage],
        make: Callable[[List[PreparedImage]], Any],
    ) -> Any:
        """States of images from ``prepare``; ``make`` is called once, with those not known."""
        known: Dict[Optional[bytes], Any] = {}
        unknown: Dict[Optional[bytes], PreparedImage] = {}
        for image in images:
            states = self._get(image.key) if image.states is None else image.states
            if states is None:
                unknown.setdefault(image.key, image)
            else:
                known[image.key] = states
        if unknown:
            for key, states in zip(unknown, _split(make(list(unknown.values())))):
                known[key] = states
                self._put(key, states)
        return _joined([known[image.key] for image in images])

    def _get(self, key: Optional[bytes]) -> Any:
        with self._lock:
            if key is None or key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key][0]

    def _put(self, key: Optional[bytes], states: Any) -> None:
        size = _size(states)
        if key is None or size > self._most_bytes:
            return
        with self._lock:
            self._bytes += size - self._kept.pop(key, (None, 0))[1]
            self._kept[key] = (states, size)
            while self._bytes > self._most_bytes:
                _, (_, freed) = self._kept.popitem(last=False)
                self._bytes -= freed


def _split(states: Any) -> List[Any]:
    """States of single images, none of which keeps the memory of the others."""
    if isinstance(states, np.ndarray):
        return [np.array(row) for row in states]
    from ..decoding.openvino_run import split_contexts

    return list(split_contexts(states))


def _joined(parts: List[Any]) -> Any:
    if not parts or isinstance(parts[0], np.ndarray):
        return np.stack(parts)
    from ..decoding.openvino_run import joined_contexts

    return joined_contexts(parts)


def _size(states: Any) -> int:
    if isinstance(states, np.ndarray):
        return states.nbytes
    return sum(int(tensor.get_byte_size()) for tensor in states.tensors.values())
