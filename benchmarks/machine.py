"""Which machine this is: what a figure needs beside it to mean something."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from pydantic import BaseModel, ConfigDict

#: Processor features that decide how fast matrix products are.
_FEATURES = (
    "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16",
    "amx_bf16", "amx_int8", "amx_fp16",
)  # fmt: skip


class Machine(BaseModel):
    """The processor and memory that were measured; no host name, no paths."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    processor: str
    family_model: str
    cores: int
    features: tuple[str, ...]
    memory_bytes: int
    system: str
    virtual: bool


def describe() -> Machine:
    """This machine."""
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    flags = fields.get("flags", "").split()
    return Machine(
        processor=fields.get("model name", platform.machine()),
        family_model=f"{fields.get('cpu family', '?')}/{fields.get('model', '?')}",
        cores=available_cores(),
        features=tuple(name for name in _FEATURES if name in flags),
        memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        system=f"{platform.system()} {platform.release()}",
        virtual="hypervisor" in flags,
    )


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))
