"""What a pipeline file may say: frozen pydantic models that reject unknown keys."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from configs.names import TASK_COMPONENTS as TASK_COMPONENTS
from configs.names import Component as Component
from configs.names import Task as Task
from configs.precisions import PRECISIONS as PRECISIONS
from configs.precisions import Backend
from configs.precisions import Precision as Precision

#: ``required``: a net whose attentions the compiler did not all fuse is an error; ``recorded``:
#: the manifest says how many were; ``off``: the graph is changed so that none is
AttentionFusion = Literal["required", "recorded", "off"]

#: What a chip's decoder answers with: ``argmax`` adds the best token and its logit to the logits,
#: so that greedy search reads a few bytes per token
DecoderHead = Literal["logits", "argmax"]

#: ``exact``: as onnxruntime; ``tables``: functions come from tables and short iterations;
#: ``fused_attention``: the attentions that the compiler fuses are rougher
Float32 = Literal["exact", "tables", "fused_attention"]

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0.0)]


class Strict(BaseModel):
    """Base of every configuration model: immutable, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ShapeVariants(Strict):
    """Further shapes that SOPHON's nets are compiled for, beside those of ``StaticShapes``.

    The runtime takes the smallest one that fits each call (docs/chip-shapes.md).
    """

    #: images per call: vision encoder, its projection and, for captions, cross keys and values
    batch: tuple[Annotated[int, Field(ge=2, le=64)], ...] = ()
    #: shorter texts, questions (vqa, itm) and prompts (caption)
    text_tokens: tuple[Annotated[int, Field(ge=2, le=512)], ...] = ()
    #: shorter self-attention caches of a decoder's step
    past_tokens: tuple[Annotated[int, Field(ge=1, le=511)], ...] = ()
    #: rows per decoder step: beams of one search, or several captions and answers
    beams: tuple[Annotated[int, Field(ge=2, le=64)], ...] = ()

    @field_validator("batch", "text_tokens", "past_tokens", "beams")
    @classmethod
    def _distinct(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) != len(value):
            raise ValueError("a length is listed twice; list each once")
        return tuple(sorted(value))


class StaticShapes(Strict):
    """Lengths that targets without dynamic shapes are compiled for."""

    #: images, questions or captions per call
    batch: Literal[1] = 1
    #: prompt (caption) or question and text (vqa, itm) tokens, padded to this length
    text_tokens: Annotated[int, Field(ge=2, le=512)]
    #: rows of the decoder's self-attention cache: prompt plus generated tokens (caption, vqa)
    past_tokens: Annotated[int, Field(ge=4, le=511)] | None = None
    #: drafted tokens that a pass of a chip's decoder can check (caption); 0: one token per pass
    draft_tokens: Annotated[int, Field(ge=0, le=63)] = 0
    #: further, on chips (sophon)
    variants: ShapeVariants = ShapeVariants()

    @property
    def first_pass_tokens(self) -> int:
        """Tokens that a captioner's first pass takes: the prompt's, or a token and its drafts."""
        return max(self.text_tokens, 1 + self.draft_tokens)

    @model_validator(mode="after")
    def _variants_are_smaller(self) -> StaticShapes:
        for name, most in (("text_tokens", self.text_tokens), ("past_tokens", self.past_tokens)):
            for length in getattr(self.variants, name):
                if most is None or length >= most:
                    raise ValueError(
                        f"variants.{name}: {length} is not below {name} ({most}), the largest; "
                        f"raise {name} or remove it"
                    )
        return self


class TaskConfig(Strict):
    """One task: which checkpoint, and the lengths it is compiled for."""

    #: local folder or ``.pth`` file (relative to the repository root, or absolute), or hub id
    checkpoint: Annotated[str, Field(min_length=1)]
    #: hub commit, tag or branch; only for hub ids
    revision: str | None = None
    #: first token of a question or text: [CLS] as HuggingFace does, or [ENC] as the original code
    question_start: Literal["cls", "enc"] = "cls"
    #: pixels of an image's side, where not the checkpoint's own: the table of positions is
    #: interpolated, as HuggingFace does with ``interpolate_pos_encoding=True``
    image_size: PositiveInt | None = None
    shapes: StaticShapes


class TargetSelection(Strict):
    """Which precisions to build for one target."""

    precisions: Annotated[tuple[Precision, ...], Field(min_length=1)]
    #: components that are built as something else within a precision's set, e.g.
    #: ``{int8: {text_decoder: w8f16}}``; the artifact still belongs to the set it is listed under
    components: dict[Precision, dict[Component, Precision]] = {}
    # What follows is for SOPHON's chips; null takes the chip's own.
    #: cores that nets are compiled for
    cores: PositiveInt | None = None
    #: how attention fusions are treated
    attention_fusion: AttentionFusion | None = None
    #: whether decoders choose the next token themselves
    decoder_head: DecoderHead | None = None
    #: folder of quantize tables to take instead of searching for them (docs/quantization.md)
    quantize_tables: Annotated[str, Field(min_length=1)] | None = None

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


class TokenCheck(Strict):
    """How many whole answers to compare; ``verify.gates`` says how many must be equal."""

    #: held-out scenes per task
    scenes: PositiveInt

    @model_validator(mode="before")
    @classmethod
    def _moved(cls, data: Any) -> Any:
        if isinstance(data, dict) and "minimum_exact" in data:
            raise ValueError(
                "minimum_exact was removed; give min_agreement in verify.gates.<task>, "
                "e.g. gates: {caption: {f16: {min_agreement: 0.995}}}, or remove it"
            )
        return data


#: Quality metrics of each task (docs/evaluation.md); larger is better for all of them.
TASK_METRICS: dict[Task, tuple[str, ...]] = {
    "caption": ("exact_match", "bleu_4", "cider"),
    "vqa": ("soft_accuracy", "exact_match"),
    "itm": (
        *("accuracy", "auc"),
        *("text_recall_1", "text_recall_5", "text_recall_10"),
        *("image_recall_1", "image_recall_5", "image_recall_10"),
    ),
}


class QualityGate(Strict):
    """What a target's answers may lose against the checkpoint's on the same items."""

    #: least share of items with the checkpoint's own tokens or match decisions; where no gate that
    #: fits says it, configs/tolerances.yaml does (``answers``)
    min_agreement: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    #: per metric, the largest drop: the checkpoint's value minus the target's
    max_drop: dict[str, NonNegativeFloat] = {}

    @model_validator(mode="after")
    def _asks_for_something(self) -> QualityGate:
        if self.min_agreement is None and not self.max_drop:
            raise ValueError("an empty gate; give min_agreement, max_drop or both")
        return self


class VerifyConfig(Strict):
    """How artifacts are verified; tolerances stand in configs/tolerances.yaml."""

    seed: int = 0
    #: held-out scenes per component check
    component_scenes: PositiveInt = 4
    #: per target name; "onnx" is the exported graph under onnxruntime
    tokens: dict[str, TokenCheck]
    #: chips whose artifacts are run on the vendor's simulator by a default verification
    simulate: bool = True
    #: per task: gates by ``precision``, ``target.precision`` or ``target.precision.mode``; the
    #: most specific one that fits an artifact is used
    gates: dict[Task, dict[str, QualityGate]] = {}

    @model_validator(mode="after")
    def _gates_name_what_there_is(self) -> VerifyConfig:
        for task, gates in self.gates.items():
            for name, gate in gates.items():
                parts = name.split(".")
                precision = parts[0] if len(parts) == 1 else parts[1]
                if len(parts) > 3 or precision not in PRECISIONS:
                    raise ValueError(
                        f"gates.{task}.{name}: name a precision, target.precision or "
                        "target.precision.mode, e.g. int8 or openvino.f16.fast"
                    )
                if len(parts) == 3 and parts[2] not in ("exact", "fast"):
                    raise ValueError(f"gates.{task}.{name}: the mode must be exact or fast")
                for metric in gate.max_drop:
                    if metric not in TASK_METRICS[task]:
                        raise ValueError(
                            f"gates.{task}.{name}.max_drop.{metric}: not a metric of {task}; "
                            f"choose from: {', '.join(TASK_METRICS[task])}"
                        )
        return self


DataSetKind = Literal["scenes", "coco_captions", "vqa_v2", "karpathy", "folder"]

#: Tasks that each kind of data set can be evaluated on; a folder's tasks follow from its columns.
DATA_SET_TASKS: dict[DataSetKind, tuple[Task, ...]] = {
    "scenes": ("caption", "vqa", "itm"),
    "coco_captions": ("caption", "itm"),
    "vqa_v2": ("vqa",),
    "karpathy": ("caption", "itm"),
    "folder": ("caption", "vqa", "itm"),
}


class DataSetConfig(Strict):
    """One data set to evaluate on; relative paths are below the repository root."""

    kind: DataSetKind
    #: names the result file; from the path where absent
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")] | None = None
    #: annotations file (COCO captions, VQAv2, Karpathy), or a folder with a CSV file, or the CSV
    path: Annotated[str, Field(min_length=1)] | None = None
    #: VQAv2's file of questions
    questions: Annotated[str, Field(min_length=1)] | None = None
    #: folder that image names are relative to; that of ``path`` where absent
    images: Annotated[str, Field(min_length=1)] | None = None
    #: split of a Karpathy file
    split: str = "test"
    #: tasks to evaluate on it; all that its kind and the pipeline have where absent
    tasks: tuple[Task, ...] | None = None
    #: at most so many items, instead of ``evaluate.items``
    items: PositiveInt | None = None

    @model_validator(mode="after")
    def _paths_fit_the_kind(self) -> DataSetConfig:
        if self.kind != "scenes" and self.path is None:
            raise ValueError(f"path is missing; a {self.kind} data set is read from a file")
        if self.kind == "scenes" and self.path is not None:
            raise ValueError("path: the scenes are drawn, not read; remove it")
        if (self.kind == "vqa_v2") != (self.questions is not None):
            raise ValueError("questions: the file of questions, for vqa_v2 and for nothing else")
        for task in self.tasks or ():
            if task not in DATA_SET_TASKS[self.kind]:
                raise ValueError(f"tasks: a {self.kind} data set has nothing for {task}")
        return self


class EvaluateConfig(Strict):
    """What ``verify evaluate`` runs (docs/evaluation.md)."""

    data_sets: Annotated[tuple[DataSetConfig, ...], Field(min_length=1)] = (
        DataSetConfig(kind="scenes"),
    )
    #: at most so many items (captioned images, questions, matched images) per data set
    items: PositiveInt = 1000
    #: the same on a chip's simulator, which takes about a second per item
    simulated_items: PositiveInt = 40
    #: OpenVINO arithmetic
    modes: Annotated[tuple[Literal["exact", "fast"], ...], Field(min_length=1)] = ("exact", "fast")
    #: caption prompt; the scenes alternate between none and the one of their training
    prompt: str = ""
    #: candidates per query that the matching head ranks anew after the contrastive features
    rerank: Annotated[int, Field(ge=0)] = 0
    #: questions: a file of answers, one per line, to choose from as BLIP's own ``rank`` evaluation
    #: does; none: answers are generated
    answers: Annotated[str, Field(min_length=1)] | None = None
    #: how many of them are scored whole, those whose first token is most likely
    answer_candidates: PositiveInt = 128
    #: bootstrap replicates, and the seed of everything random
    bootstrap: PositiveInt = 1000
    seed: Annotated[int, Field(ge=0)] = 0


class CalibrationConfig(Strict):
    """Data that integer precisions are calibrated with; recorded in the artifacts' manifests."""

    #: ``scenes``, the procedural scenes' training split, or a folder of images with an optional
    #: ``questions.csv`` (``image,question``), relative to the repository root or absolute
    source: Annotated[str, Field(min_length=1)] = "scenes"
    #: images, each with its questions or texts; seeds are as many scenes apart as there may be
    samples: Annotated[int, Field(gt=0, le=100_000)] = 64
    seed: Annotated[int, Field(ge=0)] = 0
    #: largest relative error (root of summed squares) that integers may cause in a net's outputs
    maximum_error: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.05
    #: samples on which a quantize table is searched for
    measured_samples: PositiveInt = 8


class PipelineConfig(Strict):
    """A whole pipeline file."""

    #: folder below models/artifacts
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    tasks: Annotated[dict[Task, TaskConfig], Field(min_length=1)]
    targets: Annotated[dict[str, TargetSelection], Field(min_length=1)]
    #: the only pictures that its checkpoints know, where these are not photographs
    domain: Annotated[str, Field(min_length=1)] | None = None
    #: where artifacts go, relative to the repository root
    artifacts: PurePosixPath = PurePosixPath("models/artifacts")
    calibration: CalibrationConfig = CalibrationConfig()
    verify: VerifyConfig
    evaluate: EvaluateConfig = EvaluateConfig()

    @model_validator(mode="after")
    def _decoder_lengths(self) -> PipelineConfig:
        for name, task in self.tasks.items():
            shapes = task.shapes
            if "text_decoder" not in TASK_COMPONENTS[name] and shapes.variants.beams:
                raise ValueError(f"tasks.{name}.shapes.variants.beams: {name} has no decoder")
            if name != "caption" and shapes.draft_tokens:
                raise ValueError(
                    f"tasks.{name}.shapes.draft_tokens: {name} has no net that could check several "
                    "tokens; remove it"
                )
            if "text_decoder" in TASK_COMPONENTS[name]:
                if shapes.past_tokens is None:
                    raise ValueError(
                        f"tasks.{name}.shapes.past_tokens is missing; give the cache length"
                    )
                if name == "caption" and shapes.past_tokens <= shapes.first_pass_tokens:
                    raise ValueError(
                        f"tasks.{name}.shapes.past_tokens ({shapes.past_tokens}) must exceed "
                        f"text_tokens ({shapes.text_tokens}) and draft_tokens "
                        f"({shapes.draft_tokens}): the cache holds prompt and caption"
                    )
        return self


class _Target(Strict):
    """What every target's file says: configs/targets/<name>.yaml."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    #: which compiler and runtime session serve it
    backend: Backend
    #: artifact folder below the task folder
    folder: str
    precisions: Annotated[tuple[Precision, ...], Field(min_length=1)]
    default_precision: Precision
    #: what components of an integer set become where the pipeline file says nothing else
    components: dict[Precision, dict[Component, Precision]] = {}

    @model_validator(mode="after")
    def _precisions_can_be_built(self) -> Self:
        if self.default_precision not in self.precisions:
            raise ValueError(f"default_precision {self.default_precision} is not in precisions")
        for precision in self.precisions:
            for component in get_args(Component):
                built_as = self.components.get(precision, {}).get(component, precision)
                if not PRECISIONS[built_as].built_by(self.backend):
                    raise ValueError(
                        f"precisions: {precision}: {self.backend} cannot build {component} as "
                        f"{built_as}; remove it or say in components what it becomes"
                    )
        return self


class OpenVinoTarget(_Target):
    """Intel devices."""

    backend: Literal["openvino"]
    #: whether nets get fixed shapes
    static_shapes: bool = False


class MemoryLayout(Strict):
    """The vendor's memory layout for a SoC, in MiB, as ``memory_edit.sh`` takes it."""

    npu: PositiveInt
    vpu: Annotated[int, Field(ge=0)]
    vpp: Annotated[int, Field(ge=0)]


class SophonTarget(_Target):
    """A SOPHON chip; its nets always have fixed shapes."""

    backend: Literal["sophon"]
    #: cores a net is compiled for unless the pipeline file says otherwise, and how many there are
    cores: PositiveInt = 1
    maximum_cores: PositiveInt = 1
    #: dtype of a half-precision net's inputs and outputs: ``float32`` leaves casts inside the net,
    #: ``native`` takes what the net computes in
    borders: Literal["float32", "native"] = "float32"
    #: how the compiler places inputs and outputs in memory: null leaves the choice to it
    address_mode: Literal["basic", "io_alone", "io_tag"] | None = None
    #: how hard the compiler searches for the slices of its layer groups; null leaves the choice to
    #: it (``--shape_secs_search_strategy``)
    layer_group_search: Literal[0, 1, 2] | None = None
    #: how attention fusions are treated in half precision
    attention_fusion: AttentionFusion = "recorded"
    #: what decoders answer with
    decoder_head: DecoderHead = "logits"
    #: graph rewrites this chip needs, in order (compile/bmodel/rewrites)
    rewrites: tuple[str, ...] = ()
    #: further ones for nets of integers
    integer_rewrites: tuple[str, ...] = ()
    #: what stays in float in a net of integers
    integer_islands: Literal["f32", "f16", "bf16"] = "f16"
    #: whether an integer matrix has one scale per output column, or one for all
    scale_per_channel: bool = True
    #: what makes float32 on the chip differ from float32 elsewhere (docs/tolerances.md)
    float32: Float32 = "exact"
    #: whether nets of one component go into one file with shared weights
    combine_nets: bool = False
    #: where the compiler leaves its latency estimate, or null where it leaves none
    estimate_file: str | None = None
    #: vendor guidance for a SoC; ``blip-edge info`` shows it
    memory_layout_mib: MemoryLayout | None = None

    @model_validator(mode="after")
    def _there_are_so_many_cores(self) -> Self:
        if self.cores > self.maximum_cores:
            raise ValueError(f"cores {self.cores} exceeds maximum_cores {self.maximum_cores}")
        return self


#: One compilation target; ``backend`` says which.
TargetConfig = OpenVinoTarget | SophonTarget
TARGET_KINDS: dict[str, type[OpenVinoTarget] | type[SophonTarget]] = {
    "openvino": OpenVinoTarget,
    "sophon": SophonTarget,
}
