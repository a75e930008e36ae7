"""Arguments of text generation, with the names and meaning of HuggingFace ``generate``."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Optional, Tuple, Union

from ..errors import InputError

#: New tokens when neither max_length nor max_new_tokens is given, as in HuggingFace.
DEFAULT_NEW_TOKENS = 20


@dataclass(frozen=True)
class GenerationSettings:
    """How to search. Lengths count tokens, the prompt's included unless the name says ``new``."""

    max_length: Optional[int] = None
    max_new_tokens: Optional[int] = None
    min_length: Optional[int] = None
    min_new_tokens: Optional[int] = None
    num_beams: int = 1
    num_return_sequences: int = 1
    length_penalty: float = 1.0
    early_stopping: Union[bool, str] = False
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    seed: Optional[int] = None
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0

    @classmethod
    def from_arguments(cls, **arguments: Any) -> "GenerationSettings":
        """Settings from keyword arguments; None means the default.

        Raises:
            InputError: an unknown name or an impossible value.
        """
        known = {item.name for item in fields(cls)}
        unknown = sorted(set(arguments) - known)
        if unknown:
            raise InputError(
                f"generation argument '{unknown[0]}': unknown; choose from "
                + ", ".join(sorted(known))
            )
        return cls(**{name: value for name, value in arguments.items() if value is not None})

    def __post_init__(self) -> None:
        for name, lowest in _WHOLE_NUMBERS.items():
            value = getattr(self, name)
            if value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
                raise InputError(f"{name} {value!r}: must be a whole number of at least {lowest}")
        for name in ("length_penalty", "temperature", "top_p", "repetition_penalty"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
                raise InputError(f"{name} {value!r}: must be a number")
        if self.temperature <= 0:
            raise InputError(f"temperature {self.temperature}: must be above 0")
        if not 0 <= self.top_p <= 1:
            raise InputError(f"top_p {self.top_p}: must be between 0 and 1")
        if self.repetition_penalty <= 0:
            raise InputError(f"repetition_penalty {self.repetition_penalty}: must be above 0")
        if self.early_stopping not in (True, False, "never"):
            raise InputError(f"early_stopping {self.early_stopping!r}: True, False or 'never'")
        self._check_return_sequences()

    def _check_return_sequences(self) -> None:
        wanted = self.num_return_sequences
        if wanted > 1 and self.num_beams == 1 and not self.do_sample:
            raise InputError(f"num_return_sequences {wanted}: needs num_beams above 1 or do_sample")
        if self.num_beams > 1 and wanted > self.num_beams:
            raise InputError(
                f"num_return_sequences {wanted}: must not exceed num_beams ({self.num_beams})"
            )

    def lengths(self, prompt_tokens: int, maximum_positions: int, capacity: int) -> Tuple[int, int]:
        """Largest and smallest total length in tokens for one prompt.

        Args:
            prompt_tokens: length of the prompt, start token included.
            maximum_positions: positions the checkpoint knows.
            capacity: longest sequence the decoder can produce; generation stops there in any case.

        Raises:
            InputError: the prompt leaves no room.
        """
        if self.max_new_tokens is not None:
            longest = prompt_tokens + self.max_new_tokens
        elif self.max_length is not None:
            longest = self.max_length
        else:
            longest = min(prompt_tokens + DEFAULT_NEW_TOKENS, maximum_positions)
        if prompt_tokens >= longest:
            raise InputError(
                f"max_length {longest}: the prompt alone has {prompt_tokens} tokens; "
                "raise it or set max_new_tokens"
            )
        if prompt_tokens >= capacity:
            raise InputError(
                f"prompt of {prompt_tokens} tokens: this artifact holds {capacity - 1}; shorten it"
            )
        shortest = self.min_length or 0
        if self.min_new_tokens:
            shortest = max(shortest, prompt_tokens + self.min_new_tokens)
        return min(longest, capacity), shortest


_WHOLE_NUMBERS = {
    "max_length": 1,
    "max_new_tokens": 1,
    "min_length": 0,
    "min_new_tokens": 0,
    "num_beams": 1,
    "num_return_sequences": 1,
    "top_k": 0,
    "seed": 0,
    "no_repeat_ngram_size": 0,
}
