"""YAML -> frozen configuration, with every problem reported as ``file: path.to.key: what``."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from configs.errors import ConfigError
from configs.layout import REPOSITORY_ROOT, TARGETS_FOLDER
from configs.schema import (
    PRECISIONS,
    TARGET_KINDS,
    OpenVinoTarget,
    PipelineConfig,
    Precision,
    TargetConfig,
)

Model = TypeVar("Model", bound=BaseModel)

#: Keys that an attention must have for TPU-MLIR 1.30.2 to fuse it: seen on BM1684X and BM1688 for a
#: decoder's steps (caches of 1 and 2), on BM1688 for text encoders (texts of 2 and 3).
FEWEST_FUSED = 4


class _UniqueKeyLoader(yaml.SafeLoader):
    """A safe loader that refuses a key given twice (YAML keeps the last one silently)."""


def _construct_mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    mapping: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in mapping:
            line = key_node.start_mark.line + 1
            raise yaml.constructor.ConstructorError(None, None, f"line {line}: key {key!r} twice")
        mapping[key] = loader.construct_object(value_node, deep=True)
    return mapping


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)


def shown(path: Path) -> str:
    """A path as a user would type it: relative to the repository when inside it."""
    try:
        return str(path.resolve().relative_to(REPOSITORY_ROOT))
    except ValueError:
        return str(path)


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads one YAML mapping.

    Raises:
        ConfigError: missing, unreadable, not YAML, a duplicate key, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{shown(path)}: no such file; name an existing YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{shown(path)}: cannot be read ({error})") from None
    try:
        data = yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506 - a SafeLoader subclass
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{shown(path)}: not valid YAML: {reason}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{shown(path)}: must be a mapping of keys to values")
    return data


def _advice(message: str, location: tuple[int | str, ...], model: type[BaseModel]) -> str:
    if message != "Extra inputs are not permitted":
        return message
    names: Iterable[str] = model.model_fields
    nested: set[str] = set(names)
    for field in model.model_fields.values():
        for candidate in _models_in(field.annotation):
            nested |= set(candidate.model_fields)
    close = difflib.get_close_matches(str(location[-1]), sorted(nested), n=1)
    hint = f"did you mean {close[0]!r}?" if close else "remove it"
    return f"unknown key; {hint}"


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    found: list[type[BaseModel]] = []
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        found.append(annotation)
        for field in annotation.model_fields.values():
            found += _models_in(field.annotation)
    for argument in getattr(annotation, "__args__", ()):
        found += _models_in(argument)
    return found


def validate(model: type[Model], data: dict[str, Any], path: Path) -> Model:
    """Validates data read from ``path``.

    Raises:
        ConfigError: one line per problem, each ``file: path.to.key: what, what to do``.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            location = problem["loc"]
            message = problem["msg"].removeprefix("Value error, ")
            key = ".".join(str(part) for part in location if part != "[key]") or "(top level)"
            given = problem.get("input")
            if isinstance(given, str | int | float) and problem["type"] != "extra_forbidden":
                message = f"{message} (given: {given!r})"
            lines.append(f"{shown(path)}: {key}: {_advice(message, location, model)}")
        raise ConfigError("\n".join(lines)) from None


def target_names() -> tuple[str, ...]:
    """Names of all targets: one YAML file each."""
    return tuple(sorted(path.stem for path in TARGETS_FOLDER.glob("*.yaml")))


@cache
def load_target(name: str) -> TargetConfig:
    """Loads configs/targets/<name>.yaml.

    Raises:
        ConfigError: no such target, or its file is invalid.
    """
    path = TARGETS_FOLDER / f"{name}.yaml"
    if name not in target_names():
        raise ConfigError(f"unknown target {name!r}; choose one of: {', '.join(target_names())}")
    data = read_yaml(path)
    kind = TARGET_KINDS.get(str(data.get("backend")))
    if kind is None:
        known = ", ".join(TARGET_KINDS)
        raise ConfigError(f"{shown(path)}: backend: missing or unknown; choose one of: {known}")
    target: TargetConfig = validate(kind, data, path)
    if target.name != name:
        raise ConfigError(f"{shown(path)}: name: must be {name!r}, the file's own name")
    return target


def pipeline_target(pipeline: PipelineConfig, name: str) -> TargetConfig:
    """A target as one pipeline file wants it: the chip's file with the file's own choices.

    Raises:
        ConfigError: no such target, more cores than the chip has, or a choice of chips alone.
    """
    target = load_target(name)
    selection = pipeline.targets.get(name)
    if selection is None:
        _check_lengths(pipeline, target)
        return target
    chosen = selection.model_dump(exclude={"precisions", "components"}, exclude_none=True)
    if isinstance(target, OpenVinoTarget):
        for key, value in chosen.items():
            raise ConfigError(
                f"targets.{name}.{key}: {value} given, but {name} is no SOPHON chip; remove it"
            )
        return target
    if (selection.cores or 1) > target.maximum_cores:
        raise ConfigError(
            f"targets.{name}.cores: {selection.cores} given, {name} has {target.maximum_cores}; "
            "give at most that many"
        )
    own = {key: value for key, value in chosen.items() if key in type(target).model_fields}
    target = target.model_copy(update=own)
    _check_lengths(pipeline, target)
    return target


def _check_lengths(pipeline: PipelineConfig, target: TargetConfig) -> None:
    """Refuses lengths whose attentions the chip's compiler would not fuse, before any work starts.

    Raises:
        ConfigError: a cache, question or text that is too short.
    """
    if isinstance(target, OpenVinoTarget) or target.attention_fusion != "required":
        return
    for task, one in pipeline.tasks.items():
        shapes = one.shapes
        where = f"tasks.{task}.shapes"
        # A step attends to its cache and its own token.
        attended = [
            (f"{where}.variants.past_tokens", length, FEWEST_FUSED - 1)
            for length in shapes.variants.past_tokens
        ]
        # A prompt's first pass attends to the whole cache as well.
        if task != "caption":
            attended.append((f"{where}.text_tokens", shapes.text_tokens, FEWEST_FUSED))
            attended += [
                (f"{where}.variants.text_tokens", length, FEWEST_FUSED)
                for length in shapes.variants.text_tokens
            ]
        for key, length, least in attended:
            if length < least:
                raise ConfigError(
                    f"{key}: {length} is too short for {target.name}, whose compiler fuses no "
                    f"attention to fewer than {FEWEST_FUSED} tokens; give at least {least}, or "
                    f"set targets.{target.name}.attention_fusion: recorded"
                )


def check_precision(target: TargetConfig, precision: str, where: str) -> Precision:
    """Rejects a precision that a target cannot compute, before any work starts.

    Raises:
        ConfigError: e.g. bm1684 + f16, which fails deep inside the vendor's compiler.
    """
    if precision not in target.precisions:
        offered = ", ".join(target.precisions)
        raise ConfigError(
            f"{where}: {target.name} cannot be built in {precision}; choose one of: {offered}"
        )
    return precision


def load_pipeline(path: Path) -> PipelineConfig:
    """Loads and cross-checks a pipeline file.

    Raises:
        ConfigError: invalid file, unknown target, or a precision a target does not have.
    """
    config = validate(PipelineConfig, read_yaml(path), path)
    for name, selection in config.targets.items():
        if name not in target_names():
            raise ConfigError(
                f"{shown(path)}: targets.{name}: unknown target; "
                f"choose one of: {', '.join(target_names())}"
            )
        try:
            target = pipeline_target(config, name)
        except ConfigError as error:
            raise ConfigError(f"{shown(path)}: {error}") from None
        for precision in selection.precisions:
            check_precision(target, precision, f"{shown(path)}: targets.{name}.precisions")
        for chosen, overrides in selection.components.items():
            for component, precision in overrides.items():
                where = f"{shown(path)}: targets.{name}.components.{chosen}.{component}"
                check_precision(target, precision, where)
                if not PRECISIONS[precision].built_by(target.backend):
                    raise ConfigError(
                        f"{where}: {precision} is a set of other precisions, no precision of a "
                        "component; name one of those"
                    )
    for name in config.verify.tokens:
        if name != "onnx" and name not in target_names():
            raise ConfigError(
                f"{shown(path)}: verify.tokens.{name}: unknown target; "
                f"choose onnx or one of: {', '.join(target_names())}"
            )
    for task, gates in config.verify.gates.items():
        for gate in gates:
            target_name = gate.split(".")[0]
            if "." in gate and target_name not in ("onnx", *target_names()):
                raise ConfigError(
                    f"{shown(path)}: verify.gates.{task}.{gate}: unknown target {target_name}; "
                    f"choose onnx or one of: {', '.join(target_names())}"
                )
    return config
