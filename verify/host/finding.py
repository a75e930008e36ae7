"""What a comparison found wrong, and where."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One defect: the part of the way it is in, the place in that part, and how it shows."""

    #: ``settings``, ``preprocessing``, ``tokenization``, ``host``, ``generation``, ``export`` or
    #: ``target``
    part: str
    #: a setting, a tensor, or a component and its layer
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.part}: {self.where}: {self.what}"
