"""Checkpoints from a hub: asked about before they are downloaded, compared with what it lists."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from configs.layout import Layout
from configs.load import load_pipeline
from export.__main__ import application
from export.checkpoint import find, inspect
from pipeline.checkpoint.stored import model_folder, weights_sha256
from tests.export_checkpoints import make_checkpoint, write_pipeline
from tests.model_hub import Hub, serving

NAME = "owner/blip"
COMMIT = "1" * 40
OTHER = "2" * 40
WEIGHTS = (".safetensors", ".bin")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("published") / "checkpoint", "caption")


@pytest.fixture
def hub(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(monkeypatch, tmp_path / "cache") as hub:
        hub.add(NAME, checkpoint)
        yield hub


def pipeline(tmp_path: Path, name: str = NAME, task: str = "caption", **settings: Any) -> Path:
    return write_pipeline(tmp_path, {task: name}, **{task: settings})


def export(config: Path, *options: str) -> Any:
    return CliRunner().invoke(application, ["--config", str(config), *options])


def refusal(config: Path, *options: str, code: int = 2) -> str:
    result = export(config, *options)
    assert result.exit_code == code, result.output
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    (line,) = [line for line in lines if "downloading" not in line]
    return line


def fetch(config: Path) -> Any:
    """Finds, downloads and checks the checkpoint, as an export does before it builds."""
    layout = Layout(load_pipeline(config))
    return inspect(find("caption", layout.pipeline.tasks["caption"]), layout.converted)


def blob(tmp_path: Path) -> Path:
    """The weights in the hub's cache."""
    return max((tmp_path / "cache").rglob("blobs/*"), key=file_size)


def file_size(path: Path) -> int:
    return path.stat().st_size


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x40
    path.write_bytes(content)


def test_downloaded_once(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    config = pipeline(tmp_path, revision=COMMIT)
    result = export(config, "--component", "vision_encoder")
    assert result.exit_code == 0, result.output
    assert "downloading owner/blip" in result.stderr
    manifest = json.loads((tmp_path / "artifacts/test/caption/manifest.json").read_text())
    assert manifest["checkpoint"]["source"] == NAME
    assert manifest["checkpoint"]["revision"] == COMMIT
    hub.requests.clear()
    assert "unchanged" in export(config, "--component", "vision_encoder").stderr
    assert hub.requests == []
    # What verify compares with comes from the same folder, and nothing is asked for.
    layout = Layout(load_pipeline(config))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert (model_folder(layout, "caption", COMMIT) / "model.safetensors").is_file()
    digest = manifest["checkpoint"]["weights_sha256"]
    assert weights_sha256(layout, "caption", COMMIT) == digest
    flip(blob(tmp_path))
    assert weights_sha256(layout, "caption", COMMIT) != digest


def test_pickle_from_the_hub(tmp_path: Path, hub: Hub, checkpoint: Path) -> None:
    folder = tmp_path / "published"
    shutil.copytree(checkpoint, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    hub.add("owner/pickle", folder)
    files = fetch(pipeline(tmp_path, "owner/pickle"))
    assert files.identity.weights_sha256 == fetch(pipeline(tmp_path)).identity.weights_sha256
    path = max((tmp_path / "cache").glob("models--owner--pickle/blobs/*"), key=file_size)
    flip(path)
    assert "damaged" in refusal(pipeline(tmp_path, "owner/pickle"))


def test_safetensors_are_preferred(tmp_path: Path, hub: Hub, checkpoint: Path) -> None:
    folder = tmp_path / "published"
    shutil.copytree(checkpoint, folder)
    (folder / "pytorch_model.bin").write_bytes(b"not read")
    hub.add("owner/both", folder)
    fetch(pipeline(tmp_path, "owner/both"))
    assert hub.asked_for(*WEIGHTS) == [f"GET owner/both/resolve/{COMMIT}/model.safetensors"]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_byte_that_changes_on_the_way(tmp_path: Path, hub: Hub, name: str) -> None:
    hub.repositories[NAME].damaged = name
    line = refusal(pipeline(tmp_path))
    assert f"{name}: damaged: its digest is" in line
    assert "delete " in line


def test_byte_that_the_etag_hides(tmp_path: Path, hub: Hub) -> None:
    """The list of files has the digests too, and the ETag may be anything."""
    hub.repositories[NAME].damaged = "model.safetensors"
    hub.repositories[NAME].etags = {"model.safetensors": "anything"}
    assert "damaged: its digest is" in refusal(pipeline(tmp_path))


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("revision", [COMMIT, None])
def test_byte_that_changes_in_the_cache(tmp_path: Path, revision: str | None) -> None:
    config = pipeline(tmp_path, revision=revision)
    fetch(config)
    path = blob(tmp_path)
    flip(path)
    assert f"delete {path} and run again" in refusal(config)
    path.unlink()
    fetch(config)


@pytest.mark.usefixtures("hub")
def test_fifty_flipped_bits(tmp_path: Path) -> None:
    config = pipeline(tmp_path, revision=COMMIT)
    fetch(config)
    path = blob(tmp_path)
    whole = path.read_bytes()
    for index in range(50):
        position = (index * 7919 * 104729) % len(whole)
        content = bytearray(whole)
        content[position] ^= 1 << (index % 8)
        path.write_bytes(content)
        with pytest.raises(Exception, match=r"damaged|not a whole"):
            fetch(config)


def test_partial_cache_is_completed(tmp_path: Path, hub: Hub) -> None:
    """As another tool leaves it: some files of one commit, no list."""
    for name in ("config.json", "model.safetensors"):
        huggingface_hub.hf_hub_download(NAME, name, revision=COMMIT)
    hub.requests.clear()
    fetch(pipeline(tmp_path, revision=COMMIT))
    assert hub.asked_for("tokenizer.json")
    assert not hub.asked_for(*WEIGHTS)


@pytest.mark.usefixtures("hub")
def test_partial_cache_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    huggingface_hub.hf_hub_download(NAME, "config.json", revision=COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    line = refusal(pipeline(tmp_path, revision=COMMIT), code=1)
    assert "holds a part of it only" in line


def test_dry_run_downloads_no_weights(tmp_path: Path, hub: Hub) -> None:
    result = export(pipeline(tmp_path), "--dry-run")
    assert result.exit_code == 0, result.output
    assert f"caption: {NAME} at {COMMIT}" in result.stdout
    assert "MB to download" in result.stdout
    assert "text_decoder.onnx" in result.stdout
    assert not hub.asked_for(*WEIGHTS)


def test_wrong_task_downloads_no_weights(tmp_path: Path, hub: Hub) -> None:
    assert "use it for tasks.caption" in refusal(pipeline(tmp_path, task="vqa"))
    assert not hub.asked_for(*WEIGHTS)


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ("model.safetensors", "neither model.safetensors nor pytorch_model.bin"),
        (
            "preprocessor_config.json",
            "preprocessor_config.json or processor_config.json is missing",
        ),
        ("tokenizer.json", "tokenizer.json or vocab.txt is missing"),
    ],
)
def test_what_is_not_there_is_known_first(
    tmp_path: Path, hub: Hub, checkpoint: Path, removed: str, message: str
) -> None:
    folder = tmp_path / "published"
    shutil.copytree(checkpoint, folder)
    (folder / removed).unlink()
    hub.add("owner/part", folder)
    assert message in (line := refusal(pipeline(tmp_path, "owner/part")))
    assert "owner/part at 1111111" in line
    assert not hub.asked_for(*WEIGHTS)


def test_original_file_only(tmp_path: Path, hub: Hub) -> None:
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "model_base_retrieval_coco.pth").write_bytes(b"0" * 100)
    hub.add("owner/original", folder)
    line = refusal(pipeline(tmp_path, "owner/original"))
    assert "it holds model_base_retrieval_coco.pth; download a .pth file" in line


def test_branch_that_moves(tmp_path: Path, hub: Hub, checkpoint: Path) -> None:
    config = pipeline(tmp_path)
    options = ("--component", "vision_encoder")
    assert export(config, *options).exit_code == 0
    hub.add(NAME, checkpoint, OTHER)
    result = export(config, *options)
    assert result.exit_code == 0
    assert f"caption: {NAME} moved from 1111111 to 2222222" in result.stderr


@pytest.mark.usefixtures("hub")
def test_other_weights_under_the_same_commit(tmp_path: Path) -> None:
    config = pipeline(tmp_path, revision=COMMIT)
    options = ("--component", "vision_encoder")
    assert export(config, *options).exit_code == 0
    path = tmp_path / "artifacts/test/caption/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["checkpoint"]["weights_sha256"] = "0" * 64
    path.write_text(json.dumps(manifest))
    assert "not the weights that this commit had" in refusal(config, *options)
    assert export(config, *options, "--force").exit_code == 0


@pytest.mark.parametrize(
    ("refused", "code", "message"),
    [
        ((401, "GatedRepo"), 2, "access is restricted"),
        ((403, "GatedRepo"), 2, "access is restricted"),
        ((404, "RepoNotFound"), 2, "neither a local folder nor a public hub checkpoint"),
        ((404, "RevisionNotFound"), 2, "no such revision"),
        ((418, ""), 1, "cannot be downloaded"),
    ],
)
def test_refusals(
    tmp_path: Path, hub: Hub, refused: tuple[int, str], code: int, message: str
) -> None:
    hub.repositories[NAME].refused = refused
    assert message in refusal(pipeline(tmp_path), code=code)
    # A cached copy serves without the hub, except where its revision is gone.
    hub.repositories[NAME].refused = None
    first = fetch(pipeline(tmp_path))
    hub.repositories[NAME].refused = refused
    if refused[1] != "RevisionNotFound":
        assert fetch(pipeline(tmp_path)) == first


@pytest.mark.usefixtures("hub")
def test_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "cannot be downloaded" in refusal(pipeline(tmp_path), code=1)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    first = fetch(pipeline(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch(pipeline(tmp_path)) == first


def test_cut_in_the_middle_is_resumed(tmp_path: Path, hub: Hub) -> None:
    hub.repositories[NAME].cut = {"model.safetensors": [10_000, 1]}
    fetch(pipeline(tmp_path))
    begins = [begin for name, begin in hub.ranges if name == "model.safetensors"]
    assert begins[0] == 0
    assert len(begins) == 2


def test_slow_hub(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories[NAME].delay = 1.0
    huggingface_hub.utils.get_session().timeout = 0.1
    for name in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT", "DEFAULT_REQUEST_TIMEOUT"):
        monkeypatch.setattr(huggingface_hub.constants, name, 0.1)
    line = refusal(pipeline(tmp_path), code=1)
    huggingface_hub.close_session()
    assert "HF_HUB_ETAG_TIMEOUT" in line
    assert "HF_HUB_DOWNLOAD_TIMEOUT" in line


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("https://huggingface.co/owner/blip", "write the hub's id: owner/blip"),
        ("https://huggingface.co/owner/blip/tree/main", "write the hub's id: owner/blip"),
        ("blip-vqa-base", "Salesforce/blip-vqa-base"),
        ("captions", "a hub id (owner/name)"),
        ("owner/nothing", "check the name"),
    ],
)
def test_names_as_people_paste_them(tmp_path: Path, name: str, message: str) -> None:
    assert message in refusal(pipeline(tmp_path, name))
