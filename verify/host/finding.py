"""What a comparison found wrong, and where."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One defect: the stage it is in, the place in that stage, and how it shows."""

    #: ``settings``, ``preprocessing``, ``tokenization``, ``host``, ``generation``, ``export`` or
    #: ``target``
    stage: str
    #: a setting, a tensor, or a component and its layer
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.stage}: {self.where}: {self.what}"
