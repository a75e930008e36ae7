"""Planted supply-chain attacks on a bundle: ``verify-bundle`` refuses each of them.

Three kinds of attacker: one who changes files; one who also makes some of the checksums fit; one
who makes all of them fit. Against the last only a signature helps, and the tests show that.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bundle.pipeline import Options, make_bundles
from pipeline.command import select
from runtime.__main__ import main
from runtime.bundles.archive import unpack
from runtime.bundles.check import check_bundle, check_folder
from runtime.bundles.format import (
    PROVENANCE_FILE,
    SBOM_FILE,
    SIGNATURE_FILE,
    SUMS_FILE,
    VERDICT_FILE,
    BundleError,
)
from runtime.errors import InputError
from runtime.files.integrity import FileRecord, _note
from runtime.files.user_cache import private_folder
from tests.bundle_support import (
    ROOT,
    edit,
    members,
    reseal_everything,
    reseal_manifests,
    reseal_statements,
    reseal_sums,
    sha256,
    tar,
)

BMODEL = "caption/BM1684X/caption_bm1684x_f16_1b.bmodel"
Change = Callable[[Path], Any]


@pytest.fixture(scope="module")
def unpacked(bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(bundles["bm1684x"], tmp_path_factory.mktemp("unpacked"))


@pytest.fixture
def folder(unpacked: Path, tmp_path: Path) -> Path:
    """A bundle's folder to attack."""
    shutil.copytree(unpacked, tmp_path / unpacked.name)
    return tmp_path / unpacked.name


def refused(path: Path, why: str, **options: Any) -> None:
    with pytest.raises(BundleError, match=why):
        check_bundle(path, **options)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def checks(change: Callable[[list[dict[str, Any]]], Any]) -> Change:
    """An attack on the checks of the verdict."""
    return lambda folder: edit(
        folder / VERDICT_FILE, lambda data: change(data["predicate"]["checks"])
    )


def of_target(found: list[dict[str, Any]], kind: str = "component") -> dict[str, Any]:
    return next(c for c in found if c["target"] == "bm1684x" and c["kind"] == kind)


def swap_weights(folder: Path) -> None:
    flip(folder / BMODEL)


def change_answer(folder: Path) -> None:
    edit(folder / "bundle.json", lambda data: data["sample"].update(expected="a cat"))


def change_script(folder: Path) -> None:
    script = folder / "run.sh"
    script.write_text(script.read_text().replace("#!/bin/sh\n", "#!/bin/sh\ntouch /tmp/owned\n"))


def foreign_wheel(folder: Path) -> None:
    wheel = next((folder / "wheels").glob("*.whl"))
    wheel.write_bytes(wheel.read_bytes() + b"PK")


def another_wheel(folder: Path) -> None:
    (folder / "wheels" / "numpy-9.9.9-py3-none-any.whl").write_bytes(b"PK\x05\x06" + bytes(18))


def no_verdict(folder: Path) -> None:
    (folder / VERDICT_FILE).unlink()


def extra_file(folder: Path) -> None:
    (folder / "caption" / "sitecustomize.py").write_text("import os\n")


def no_subject(folder: Path) -> None:
    for name in (VERDICT_FILE, PROVENANCE_FILE):
        edit(
            folder / name,
            lambda data: data.update(subject=[s for s in data["subject"] if s["name"] != BMODEL]),
        )


def no_material(folder: Path) -> None:
    edit(
        folder / SBOM_FILE,
        lambda data: data.update(components=[c for c in data["components"] if c["name"] != BMODEL]),
    )


def other_key(folder: Path) -> None:
    path = next(folder.glob("caption/BM1684X/*vision_encoder*.manifest.json"))
    edit(path, lambda data: data["key_inputs"].update(tools={}))


def other_checkpoint(folder: Path) -> None:
    path = next(folder.glob("caption/BM1684X/*vision_encoder*.manifest.json"))
    edit(path, lambda data: data["checkpoint"].update(weights_sha256="0" * 64))


def verified_after_all(folder: Path) -> None:
    edit(folder / VERDICT_FILE, lambda data: data["predicate"].update(not_checked=["tokens"]))


# ---- what is wrong with a folder: nothing is sealed again


def test_the_bundle_itself_is_accepted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify-bundle", str(folder)]) == 0
    assert "every check passed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("attack", "why"),
    [
        (swap_weights, rf"{BMODEL}: not the file that SHA256SUMS lists"),
        (change_script, "run.sh: not the file"),
        (change_answer, "bundle.json: not the file"),
        (foreign_wheel, "blip_edge.*whl: not the file"),
        (another_wheel, "numpy-9.9.9.*: not listed"),
        (extra_file, "sitecustomize.py: not listed"),
        (no_verdict, "verdict.json: missing, but listed"),
        (checks(lambda found: found.clear()), "verdict.json: not the file"),
    ],
)
def test_a_changed_folder(folder: Path, attack: Change, why: str) -> None:
    attack(folder)
    refused(folder, why)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (f"{'0' * 64}  {BMODEL}", rf"{BMODEL}: not the file"),
        ("not a checksum", "SHA256SUMS:[0-9]+: no checksum and name"),
        (f"{'0' * 64}  LICENSE", "or a second time"),
        (f"{'0' * 64}  ../secret", r"\.\./secret: missing, but listed"),
    ],
)
def test_a_wrong_checksum_file(folder: Path, line: str, why: str) -> None:
    path = folder / SUMS_FILE
    kept = [one for one in path.read_text().splitlines() if not one.endswith(BMODEL)]
    path.write_text("\n".join([*kept, line]) + "\n")
    refused(folder, f"{why}|{BMODEL}: not listed" if BMODEL not in line else why)


def test_a_link_in_the_folder(folder: Path) -> None:
    target = folder.parent / "elsewhere"
    (folder / "LICENSE").rename(target)
    (folder / "LICENSE").symlink_to(target)
    refused(folder, "LICENSE: a link or device")


def test_a_forged_note_that_a_file_was_checked_before(folder: Path) -> None:
    """The runtime remembers digests that it compared; a check of a bundle reads every byte."""
    path = folder / BMODEL
    record = FileRecord(sha256(path), path.stat().st_size)
    swap_weights(folder)
    notes = private_folder("verified")
    assert notes is not None
    (notes / _note(path, path.stat(), record)).touch()
    refused(folder, "not the file that SHA256SUMS lists")


# ---- an attacker who makes some of the checksums fit


def seal_manifest_and_sums(folder: Path) -> None:
    reseal_manifests(folder)
    reseal_sums(folder)


def seal_all_but_the_verdict(folder: Path) -> None:
    reseal_manifests(folder)
    reseal_statements(folder)


@pytest.mark.parametrize(
    ("attack", "seal", "why"),
    [
        (swap_weights, seal_manifest_and_sums, "the statement is not about this bundle's files"),
        (swap_weights, seal_all_but_the_verdict, "the verdict is of other digests"),
        (swap_weights, reseal_statements, "not the file that its manifest describes"),
        (change_answer, reseal_sums, "bundle.json: the statement is not about"),
        (change_script, reseal_sums, "run.sh: the statement is not about"),
        (foreign_wheel, reseal_sums, "blip_edge.*: the statement is not about"),
        (another_wheel, reseal_sums, "numpy-9.9.9.*: the statement is not about"),
        (extra_file, reseal_statements, "no manifest describes this file"),
        (no_verdict, reseal_sums, "verdict.json: missing"),
        (no_subject, reseal_sums, rf"{BMODEL}: the statement is not about"),
        (no_material, reseal_sums, "sbom.cdx.json: the statement is not about"),
        (checks(lambda found: found.clear()), reseal_sums, "byproducts: .* not the one made"),
        (other_key, reseal_everything, "key: not the digest of key_inputs"),
        (other_checkpoint, reseal_everything, "checkpoint: not the one"),
        (verified_after_all, reseal_everything, "not that of a verified artifact"),
        (
            checks(lambda found: of_target(found)["metrics"].update(relative_error=0.5)),
            reseal_everything,
            "relative_error 0.5 is beyond max_relative_error",
        ),
        (
            checks(lambda found: of_target(found)["tolerance"].update(max_relative_error="any")),
            reseal_everything,
            "is beyond max_relative_error any",
        ),
        (
            checks(lambda found: of_target(found)["metrics"].update(cosine=float("nan"))),
            reseal_everything,
            "cosine nan is beyond",
        ),
        (
            checks(lambda found: found.remove(of_target(found, "tokens"))),
            reseal_everything,
            "tokens bm1684x tokens is missing",
        ),
        (
            checks(lambda found: found.remove(of_target(found, "file"))),
            reseal_everything,
            "combined_file bm1684x file is missing",
        ),
        (
            checks(lambda found: of_target(found).update(problems=["off by far"])),
            reseal_everything,
            "did not pass",
        ),
    ],
)
def test_half_sealed(folder: Path, attack: Change, seal: Change, why: str) -> None:
    attack(folder)
    seal(folder)
    refused(folder, why)


def test_the_verdict_of_another_artifact(folder: Path, bundles: dict[str, Path]) -> None:
    other = unpack(bundles["openvino"], folder.parent / "other")
    shutil.copy(other / VERDICT_FILE, folder / VERDICT_FILE)
    reseal_statements(folder)
    refused(folder, "target: of another bundle")


def test_files_of_another_target_under_this_name(folder: Path) -> None:
    edit(folder / "bundle.json", lambda data: data.update(target="bm1688"))
    reseal_statements(folder)
    refused(folder, "is of reference caption bm1684x f16, not of reference caption bm1688 f16")


def test_an_unverified_bundle_that_says_it_is_verified(folder: Path) -> None:
    """As UNVERIFIED=1 leaves it: nothing was checked."""
    nothing = {"passed": False, "checks": [], "not_checked": ["tokens"]}
    edit(folder / VERDICT_FILE, lambda data: data["predicate"].update(nothing))
    reseal_everything(folder)
    refused(folder, "the verdict is not that of a verified artifact")
    edit(folder / "bundle.json", lambda data: data.update(verified=False))
    reseal_everything(folder)
    refused(folder, "UNVERIFIED=1")


# ---- archives


def attack_archive(bundles: dict[str, Path], tmp_path: Path, change: Any, **more: Any) -> Path:
    """The archive under its own name, its members changed."""
    archive = bundles["openvino"]
    return tar(tmp_path / archive.name, change(members(archive)), **more)


def member(name: str, kind: bytes = tarfile.REGTYPE, **more: Any) -> tuple[tarfile.TarInfo, bytes]:
    entry = tarfile.TarInfo(name)
    entry.type = kind
    for key, value in more.items():
        setattr(entry, key, value)
    return entry, b"" if kind != tarfile.REGTYPE else b"owned"


ROOT_NAME = "reference-caption-openvino-f16-0.1.0"


@pytest.mark.parametrize(
    ("planted", "why"),
    [
        (member("../owned"), "leaves the artifact's folder"),
        (member(f"{ROOT_NAME}/../../owned"), "leaves the artifact's folder"),
        (member("/tmp/owned"), "leaves the artifact's folder"),  # noqa: S108
        (member(f"{ROOT_NAME}/a\\..\\owned"), "leaves the artifact's folder|no plain relative"),
        (member(f"{ROOT_NAME}/./owned"), "no plain relative name"),
        (member("owned"), "outside the one folder"),
        (member(f"{ROOT_NAME}/a", tarfile.SYMTYPE, linkname="/etc/passwd"), "is a link"),
        (member(f"{ROOT_NAME}/a", tarfile.LNKTYPE, linkname="/etc/passwd"), "is a link"),
        (member(f"{ROOT_NAME}/a", tarfile.CHRTYPE), "device"),
        (member(f"{ROOT_NAME}/a", tarfile.FIFOTYPE), "device"),
        (member(f"{ROOT_NAME}/a", tarfile.XHDTYPE), "extension"),
        (member(f"{ROOT_NAME}/z", mode=0o4755), "has rights 4755"),
        (member(f"{ROOT_NAME}/LICENSE"), "twice or out of order"),
    ],
)
def test_a_planted_member(
    bundles: dict[str, Path], tmp_path: Path, planted: tuple[tarfile.TarInfo, bytes], why: str
) -> None:
    archive = attack_archive(bundles, tmp_path, lambda found: [*found, planted])
    refused(archive, why)
    assert not list(tmp_path.rglob("owned"))
    assert not (tmp_path.parent / "owned").exists()


def test_an_extra_file_in_the_archive(bundles: dict[str, Path], tmp_path: Path) -> None:
    extra = member(f"{ROOT_NAME}/zzz")
    refused(attack_archive(bundles, tmp_path, lambda found: [*found, extra]), "zzz: not listed")


def test_a_missing_file_in_the_archive(bundles: dict[str, Path], tmp_path: Path) -> None:
    archive = attack_archive(bundles, tmp_path, lambda found: found[:-1])
    refused(archive, "missing, but listed")


def test_data_behind_the_end(bundles: dict[str, Path], tmp_path: Path) -> None:
    archive = attack_archive(bundles, tmp_path, list, end=b"owned")
    refused(archive, "something follows the end")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999999])
def test_a_truncated_file(bundles: dict[str, Path], tmp_path: Path, share: float) -> None:
    data = bundles["openvino"].read_bytes()
    path = tmp_path / bundles["openvino"].name
    path.write_bytes(data[: int(len(data) * share)])
    refused(path, "truncated or damaged|no file")


def test_a_bomb(tmp_path: Path, bundles: dict[str, Path]) -> None:
    """80 MB of zeros in 80 kB."""
    entry = tarfile.TarInfo(f"{ROOT_NAME}/a")
    archive = tar(tmp_path / bundles["openvino"].name, [(entry, bytes(80_000_000))])
    assert archive.stat().st_size < 1_000_000
    refused(archive, "unpacks to far more than its size")


def test_under_the_name_of_another_bundle(bundles: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / bundles["bm1684x"].name
    shutil.copy(bundles["openvino"], path)
    refused(path, "the three must be equal")


def test_no_archive_and_no_file(tmp_path: Path) -> None:
    (tmp_path / "x.tar.gz").write_text("hello")
    refused(tmp_path / "x.tar.gz", "truncated or damaged")
    with pytest.raises(InputError, match="no such file"):
        check_bundle(tmp_path / "y.tar.gz")
    assert main(["verify-bundle", str(tmp_path / "x.tar.gz")]) == 1
    assert main(["verify-bundle", str(tmp_path / "y.tar.gz")]) == 2


def test_checksums_and_statements_need_no_package(folder: Path) -> None:
    """Nothing but Python's own library is imported."""
    program = (
        "import sys\n"
        "for name in ('numpy', 'PIL', 'tokenizers', 'model_signing'): sys.modules[name] = None\n"
        "from pathlib import Path\n"
        "from runtime.bundles.check import check_bundle\n"
        "print(check_bundle(Path(sys.argv[1])).name)\n"
    )
    output = subprocess.check_output([sys.executable, "-c", program, folder], cwd=ROOT, text=True)
    assert output.strip() == folder.name


# ---- an attacker who makes everything fit: only the signature tells


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two pairs of keys, as openssl writes them."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    root, found = tmp_path_factory.mktemp("keys"), {}
    for name in ("ours", "theirs"):
        key = ec.generate_private_key(ec.SECP256R1())
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        found |= {name: root / f"{name}.pem", f"{name}.pub": root / f"{name}.pub"}
        found[name].write_bytes(private)
        found[f"{name}.pub"].write_bytes(public)
    return found


@pytest.fixture(scope="module")
def signed(unpacked: Path, keys: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from runtime.bundles.signature import sign

    folder = tmp_path_factory.mktemp("signed") / unpacked.name
    shutil.copytree(unpacked, folder)
    sign(folder, keys["ours"])
    return folder


def loosen(folder: Path) -> None:
    """A failed check passes, because its tolerance was made looser, too."""

    def change(found: list[dict[str, Any]]) -> None:
        check = of_target(found)
        check["metrics"]["relative_error"] = 0.5
        check["tolerance"]["max_relative_error"] = 1.0

    checks(change)(folder)


FORGERIES = [swap_weights, change_script, change_answer, foreign_wheel, another_wheel, loosen]


@pytest.mark.parametrize("attack", FORGERIES)
def test_a_whole_forgery_is_told_by_the_signature_alone(
    signed: Path, tmp_path: Path, keys: dict[str, Path], attack: Change
) -> None:
    folder = tmp_path / signed.name
    shutil.copytree(signed, folder)
    check_folder(folder, key=keys["ours.pub"])
    attack(folder)
    reseal_everything(folder)
    check_folder(folder)  # consistent in itself: checksums prove no origin
    refused(folder, "model.sig: not a signature of this bundle", key=keys["ours.pub"])
    (folder / SIGNATURE_FILE).unlink()
    refused(folder, "the bundle is not signed", key=keys["ours.pub"])


def test_signed_by_somebody_else(signed: Path, tmp_path: Path, keys: dict[str, Path]) -> None:
    from runtime.bundles.signature import sign

    folder = tmp_path / signed.name
    shutil.copytree(signed, folder)
    sign(folder, keys["theirs"])
    refused(folder, "model.sig: not a signature of this bundle", key=keys["ours.pub"])
    (folder / SIGNATURE_FILE).write_text("{}")
    refused(folder, "model.sig: not a signature of this bundle", key=keys["ours.pub"])


def test_files_that_git_would_ignore_are_signed_too(
    signed: Path, tmp_path: Path, keys: dict[str, Path]
) -> None:
    folder = tmp_path / signed.name
    shutil.copytree(signed, folder)
    (folder / ".gitignore").write_text("*")
    reseal_everything(folder)
    check_folder(folder)
    refused(folder, "not a signature of this bundle", key=keys["ours.pub"])


def test_keys_that_are_none(signed: Path, keys: dict[str, Path], tmp_path: Path) -> None:
    for key in (tmp_path / "missing.pub", signed / "LICENSE", keys["ours"]):
        with pytest.raises(InputError, match=r"no such key|not a public key"):
            check_bundle(signed, key=key)


def test_make_bundle_signs(
    verified_pipeline: Path, tmp_path: Path, keys: dict[str, Path], capsys: Any
) -> None:
    options = Options(folder=tmp_path, sign_key=keys["ours"])
    (archive,) = make_bundles(select(verified_pipeline, target="openvino"), options)
    command = ["verify-bundle", str(archive), "--key"]
    assert main([*command, str(keys["ours.pub"])]) == 0
    assert "made with the key of" in capsys.readouterr().out
    assert main([*command, str(keys["theirs.pub"])]) == 1
    assert "refused: model.sig" in capsys.readouterr().err


def test_without_the_library(
    signed: Path, keys: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(sys.modules, "model_signing", None)
    assert main(["verify-bundle", str(signed), "--key", str(keys["ours.pub"])]) == 1
    assert "pip install model-signing pyopenssl" in capsys.readouterr().err
    assert main(["verify-bundle", str(signed)]) == 0
