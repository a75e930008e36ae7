"""What a pipeline file may say: frozen pydantic models that reject unknown keys."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Task = Literal["caption", "vqa", "itm"]
#: What a set of artifacts is built as. ``w8f16``: weights INT8, arithmetic f16. ``int8`` and
#: ``int4`` are mixed: what becomes an integer and what stays in float is decided per component.
Precision = Literal["f32", "f16", "bf16", "int8", "int4", "w8f16", "w8bf16", "w4f16", "w4bf16"]
Component = Literal[
    "vision_encoder",
    "text_encoder",
    "text_encoder_unimodal",
    "vision_projection",
    "cross_key_values",
    "text_decoder",
]

#: Components of each task in data-flow order (docs/manifest.md).
TASK_COMPONENTS: dict[Task, tuple[Component, ...]] = {
    "caption": ("vision_encoder", "cross_key_values", "text_decoder"),
    "vqa": ("vision_encoder", "text_encoder", "cross_key_values", "text_decoder"),
    "itm": ("vision_encoder", "text_encoder", "text_encoder_unimodal", "vision_projection"),
}

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0.0)]


class Strict(BaseModel):
    """Base of every configuration model: immutable, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class StaticShapes(Strict):
    """Lengths that targets without dynamic shapes are compiled for."""

    #: images, questions or captions per call
    batch: Literal[1] = 1
    #: prompt (caption) or question and text (vqa, itm) tokens, padded to this length
    text_tokens: Annotated[int, Field(ge=2, le=512)]
    #: rows of the decoder's self-attention cache: prompt plus generated tokens (caption, vqa)
    past_tokens: Annotated[int, Field(ge=4, le=511)] | None = None


class TaskConfig(Strict):
    """One task: which checkpoint, and the lengths it is compiled for."""

    #: local folder (relative to the repository root, or absolute) or model-hub id
    checkpoint: Annotated[str, Field(min_length=1)]
    #: hub commit, tag or branch; only for hub ids
    revision: str | None = None
    #: first token of a question or text: [CLS] as HuggingFace does, or [ENC] as the original code
    question_start: Literal["cls", "enc"] = "cls"
    shapes: StaticShapes


class TargetSelection(Strict):
    """Which precisions to build for one target."""

    precisions: Annotated[tuple[Precision, ...], Field(min_length=1)]
    #: components that are built as something else within a precision's set, e.g.
    #: ``{int8: {text_decoder: w8f16}}``; the artifact still belongs to the set it is listed under
    components: dict[Precision, dict[Component, Precision]] = {}

    @model_validator(mode="after")
    def _overrides_are_listed(self) -> TargetSelection:
        for precision in self.components:
            if precision not in self.precisions:
                raise ValueError(
                    f"components.{precision}: this precision is not in precisions; list it there"
                )
        return self

    @field_validator("precisions")
    @classmethod
    def _distinct(cls, value: tuple[Precision, ...]) -> tuple[Precision, ...]:
        if len(set(value)) != len(value):
            raise ValueError("a precision is listed twice; list each once")
        return value


class TokenGate(Strict):
    """How many whole generations to compare, and the exact-match rate they must reach."""

    #: held-out scenes per task
    scenes: PositiveInt
    #: least share of scenes whose tokens (or match decisions) equal the checkpoint's
    minimum_exact: Annotated[float, Field(ge=0.0, le=1.0)]


class VerifyConfig(Strict):
    """How artifacts are verified; tolerances stand in configs/tolerances.yaml."""

    seed: int = 0
    #: held-out scenes per component check
    component_scenes: PositiveInt = 4
    #: gate per target name; "onnx" is the exported graph under onnxruntime
    tokens: dict[str, TokenGate]
    #: chips whose artifacts are run on the vendor's simulator by a default verification
    simulate: bool = True


class CalibrationConfig(Strict):
    """Data that integer precisions are calibrated with; recorded in the artifacts' manifests."""

    #: ``scenes``, the procedural scenes' training split, or a folder of images with an optional
    #: ``questions.csv`` (``image,question``), relative to the repository root or absolute
    source: Annotated[str, Field(min_length=1)] = "scenes"
    #: images, each with its questions or texts
    samples: PositiveInt = 64
    seed: int = 0


class PipelineConfig(Strict):
    """A whole pipeline file."""

    #: folder below models/artifacts
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    tasks: Annotated[dict[Task, TaskConfig], Field(min_length=1)]
    targets: Annotated[dict[str, TargetSelection], Field(min_length=1)]
    #: where artifacts go, relative to the repository root
    artifacts: PurePosixPath = PurePosixPath("models/artifacts")
    calibration: CalibrationConfig = CalibrationConfig()
    verify: VerifyConfig

    @model_validator(mode="after")
    def _decoder_lengths(self) -> PipelineConfig:
        for name, task in self.tasks.items():
            shapes = task.shapes
            if "text_decoder" in TASK_COMPONENTS[name]:
                if shapes.past_tokens is None:
                    raise ValueError(
                        f"tasks.{name}.shapes.past_tokens is missing; give the cache length"
                    )
                if name == "caption" and shapes.past_tokens <= shapes.text_tokens:
                    raise ValueError(
                        f"tasks.{name}.shapes.past_tokens ({shapes.past_tokens}) must exceed "
                        f"text_tokens ({shapes.text_tokens}): the cache holds prompt and caption"
                    )
        return self


class TargetConfig(Strict):
    """One compilation target, from configs/targets/<name>.yaml."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9]+$")]
    #: which compiler and runtime session serve it
    backend: Literal["openvino", "sophon"]
    #: artifact folder below the task folder
    folder: str
    precisions: Annotated[tuple[Precision, ...], Field(min_length=1)]
    default_precision: Precision
    #: cores a net is compiled for (sophon)
    cores: PositiveInt = 1
    #: graph rewrites this chip needs, in order (compile/rewrites)
    rewrites: tuple[str, ...] = ()
    #: whether nets of one component go into one file with shared weights (sophon)
    combine_nets: bool = False
    #: where the compiler leaves its latency estimate, or null where it leaves none (sophon)
    estimate_file: str | None = None
    #: vendor guidance for the NPU heap (sophon SoC), in MiB
    npu_heap_mib: PositiveInt | None = None

    @model_validator(mode="after")
    def _default_is_offered(self) -> TargetConfig:
        if self.default_precision not in self.precisions:
            raise ValueError(f"default_precision {self.default_precision} is not in precisions")
        return self
