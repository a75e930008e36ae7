"""A wrong configuration is one line per problem, naming file and key, before any work."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from configs.errors import ConfigError
from configs.layout import CONFIGS_FOLDER
from configs.load import load_pipeline, load_target
from pipeline.command import select

REFERENCE = CONFIGS_FOLDER / "reference.yaml"


def changed(tmp_path: Path, dotted: str, value: object, *, remove: bool = False) -> Path:
    """A copy of the reference pipeline with one key set or removed."""
    data = yaml.safe_load(REFERENCE.read_text())
    *parents, last = dotted.split(".")
    node = data
    for part in parents:
        node = node[part]
    if remove:
        del node[last]
    else:
        node[last] = value
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


@pytest.mark.parametrize(
    ("dotted", "value", "expected"),
    [
        ("tasks.caption.checkpont", "x", r"tasks\.caption\.checkpont: unknown key.*'checkpoint'"),
        ("tagets", {}, r"tagets: unknown key; did you mean 'targets'"),
        ("targets.bm1690", {"precisions": ["f16"]}, r"targets\.bm1690: unknown target.*bm1684x"),
        ("targets.bm1684.precisions", ["f16"], r"targets\.bm1684\.precisions: bm1684 cannot.*f32"),
        ("targets.bm1684x.precisions", ["f12"], r"targets\.bm1684x\.precisions\.0.*f12"),
        ("targets.bm1684x.precisions", ["f16", "f16"], r"listed twice"),
        ("tasks.vqa.question_start", "sep", r"tasks\.vqa\.question_start.*'cls' or 'enc'"),
        ("tasks.caption.shapes.text_tokens", 0, r"tasks\.caption\.shapes\.text_tokens.*(given: 0)"),
        ("tasks.caption.shapes.past_tokens", 8, r"past_tokens \(8\) must exceed text_tokens"),
        ("tasks.caption.shapes.batch", 4, r"tasks\.caption\.shapes\.batch"),
        ("tasks.dance", {}, r"tasks\.dance"),
        ("verify.tokens.bm1684.scenes", 0, r"verify\.tokens\.bm1684\.scenes"),
        (
            "verify.tokens.bm1684.minimum_exact",
            1.0,
            r"tokens\.bm1684: minimum_exact was removed; give min_agreement in verify\.gates",
        ),
        ("verify.tokens.bm7", {"scenes": 1}, r"verify\.tokens\.bm7: unknown"),
        ("targets.openvino.cores", 2, r"targets\.openvino\.cores: 2 given.*no SOPHON chip"),
        ("targets.bm1684.cores", 2, r"targets\.bm1684\.cores: 2 given, bm1684 has 1"),
        (
            "targets.openvino",
            {"precisions": ["int4"], "components": {"int4": {"text_decoder": "int4"}}},
            r"components\.int4\.text_decoder: int4 is a set of other precisions",
        ),
        ("name", "Not A Folder", r"name: .*pattern"),
    ],
)
def test_wrong_value_names_file_and_key(
    tmp_path: Path, dotted: str, value: object, expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_pipeline(changed(tmp_path, dotted, value))
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "pipeline.yaml"))
    assert re.search(expected, message), message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("dotted", ["tasks.vqa.checkpoint", "tasks.caption.shapes", "verify"])
def test_missing_key_is_named(tmp_path: Path, dotted: str) -> None:
    with pytest.raises(ConfigError, match=dotted):
        load_pipeline(changed(tmp_path, dotted, None, remove=True))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: a\nname: b\n", "key 'name' twice"),
        ("- a\n- b\n", "must be a mapping"),
        ("name: [unclosed\n", "not valid YAML"),
        ("!!python/object/apply:os.system ['true']\n", "not valid YAML"),
        ("", "must be a mapping"),
    ],
)
def test_unreadable_yaml_is_one_line(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=expected) as caught:
        load_pipeline(path)
    assert "\n" not in str(caught.value)


def test_missing_file_and_binary_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_pipeline(tmp_path / "none.yaml")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_pipeline(binary)


def test_several_problems_are_all_reported(tmp_path: Path) -> None:
    path = changed(tmp_path, "tasks.caption.shapes.text_tokens", -1)
    path.write_text(path.read_text().replace("seed: 0", "sead: 0"))
    with pytest.raises(ConfigError) as caught:
        load_pipeline(path)
    assert len(str(caught.value).splitlines()) == 2


def test_unknown_target_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="bm1684, bm1684x, bm1688, openvino"):
        load_target("bm1686")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"task": "caption,dance"}, "--task dance"),
        ({"component": "decoder"}, "--component decoder.*text_decoder"),
        ({"target": "bm1686"}, "--target bm1686: unknown target"),
        ({"target": "bm1684", "precision": "f16"}, "bm1684 cannot be built in f16"),
        ({"target": "openvino", "backend": "sophon"}, "not a sophon target.*bm1684"),
    ],
)
def test_command_options_are_checked(options: dict[str, str], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        select(REFERENCE, **options)


def test_selection_filters() -> None:
    chosen = select(REFERENCE, task="vqa", component="text_encoder", target="bm1684x,bm1684")
    assert chosen.tasks == ("vqa",)
    assert chosen.task_components("vqa") == ("text_encoder",)
    assert [(t.name, p) for t, p in chosen.targets] == [("bm1684x", "f16"), ("bm1684", "f32")]
    assert {t.backend for t, _ in select(REFERENCE, backend="sophon").targets} == {"sophon"}
