"""The session for boards, through a stand-in for sophon-sail that runs BModels on the simulator."""

from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.scenes import draw, questions, scenes
from runtime import Captioner, Matcher, QuestionAnswerer
from runtime.cli.information import _tensor_bytes
from runtime.errors import BackendError
from runtime.files.manifests import TensorSpec, read_component_manifest
from runtime.files.number_formats import widened
from runtime.sessions.board_session import SailSession
from runtime.sessions.session import SessionOptions

STAND_IN = Path(__file__).resolve().parent / "stand_in"
SCENES = list(scenes(2, "heldout"))
IMAGES = [draw(scene) for scene in SCENES]


@pytest.fixture
def sail(monkeypatch: pytest.MonkeyPatch):
    """A new stand-in of release 3.10.7, without faults."""
    monkeypatch.syspath_prepend(str(STAND_IN))
    import sophon.sail as module

    yield module
    for name in ("sophon.sail", "sophon"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("sail")
@pytest.mark.parametrize("target", ["bm1684x", "bm1684"])
def test_captions_equal_those_of_the_simulator(reference_artifacts: Path, target: str):
    board = Captioner.from_artifacts(reference_artifacts, target=target, device="0")
    simulator = Captioner.from_artifacts(reference_artifacts, target=target, device="simulator")
    prompts = [None, "a picture of"]
    with board, simulator:
        assert board.batch(IMAGES, prompts) == simulator.batch(IMAGES, prompts)


@pytest.mark.usefixtures("sail")
def test_beams_take_caches_over_or_copy_them(reference_artifacts: Path):
    arguments = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 8}
    board = Captioner.from_artifacts(reference_artifacts, target="bm1684x", device="0")
    simulator = Captioner.from_artifacts(reference_artifacts, target="bm1684x", device="simulator")
    with board, simulator:
        found = board.batch(IMAGES, **arguments)
        expected = simulator.batch(IMAGES, **arguments)
    assert [item.token_ids for item in found] == [item.token_ids for item in expected]
    assert [item.alternatives for item in found] == [item.alternatives for item in expected]


@pytest.mark.usefixtures("sail")
def test_answers_and_matches(reference_artifacts: Path):
    asked = [[item.question for item in questions(scene)][:2] for scene in SCENES]
    texts = ["two blue rings", "a red circle"]
    for target in ("bm1684x", "bm1684"):
        with (
            QuestionAnswerer.from_artifacts(
                reference_artifacts, target=target, device="0"
            ) as board,
            QuestionAnswerer.from_artifacts(
                reference_artifacts, target=target, device="simulator"
            ) as simulator,
        ):
            assert board.batch(IMAGES, asked) == simulator.batch(IMAGES, asked)
    with (
        Matcher.from_artifacts(reference_artifacts, target="bm1684x", device="0") as matcher,
        Matcher.from_artifacts(
            reference_artifacts, target="bm1684x", device="simulator"
        ) as reference,
    ):
        assert matcher.batch(IMAGES, texts) == reference.batch(IMAGES, texts)


def test_a_token_moves_ids_mask_and_logits_only(reference_artifacts: Path, sail):
    with Captioner.from_artifacts(reference_artifacts, target="bm1684x", device="0") as captioner:
        crossed = []

        def on_token(_row: int, _token: int) -> None:
            crossed.append((sail.BUS.to_device, sail.BUS.from_device))

        captioner.batch(IMAGES[:1], on_token=on_token)
        manifest = captioner.manifest
    sent = {later[0] - earlier[0] for earlier, later in itertools.pairwise(crossed)}
    read = {later[1] - earlier[1] for earlier, later in itertools.pairwise(crossed)}
    slots = manifest.shapes.past_tokens
    row = 2 * manifest.dimensions.hidden_size
    assert sent == {row + row + 2 * (slots + 1) + 2}, "token row, position row, mask; logits' mark"
    assert read == {2 * manifest.text.vocabulary_size + 3 * 2}, "logits; one element per input"
    assert sail.BUS.device_copies == 0


def test_without_views_rows_are_copied_and_answers_are_the_same(reference_artifacts: Path, sail):
    found = {}
    for release in ("3.10.7", "3.9.0"):
        sail.release(release)
        with Captioner.from_artifacts(
            reference_artifacts, target="bm1688", device="0"
        ) as captioner:
            found[release] = captioner.batch(IMAGES, [None, "a picture of"])
            layers = captioner.manifest.dimensions.layers
        if release == "3.10.7":
            assert sail.BUS.device_copies == 0
    assert found["3.9.0"] == found["3.10.7"]
    steps = sum(len(answer.token_ids) for answer in found["3.9.0"])
    assert sail.BUS.device_copies > 2 * layers * steps


@pytest.mark.parametrize("release", ["3.10.7", "3.9.0"])
@pytest.mark.parametrize("failing", [("vision_encoder", 2), ("step", 3), ("cross_key_values", 1)])
def test_a_failed_launch_is_an_error(
    reference_artifacts: Path, sail, failing: tuple[str, int], release: str
):
    sail.release(release)
    sail.FAULTS.launches = {failing}
    with (
        Captioner.from_artifacts(reference_artifacts, target="bm1688", device="0") as captioner,
        pytest.raises(BackendError, match="the launch failed") as caught,
    ):
        [captioner(image) for image in IMAGES]
    assert caught.value.exit_code == 1
    assert failing[0] in str(caught.value)


def test_a_failed_launch_of_matching_is_an_error(reference_artifacts: Path, sail):
    sail.FAULTS.launches = {("vision_encoder", 2)}
    with Matcher.from_artifacts(reference_artifacts, target="bm1688", device="0") as matcher:
        matcher(IMAGES[0], "two blue rings")
        with pytest.raises(BackendError, match="the launch failed"):
            matcher(IMAGES[1], "two blue rings")


def test_a_copy_that_does_not_arrive_is_an_error(reference_artifacts: Path, sail):
    with Captioner.from_artifacts(reference_artifacts, target="bm1688", device="0") as captioner:
        first = captioner(IMAGES[0])
        sail.FAULTS.copies = {"update_data"}
        with pytest.raises(BackendError, match="did not arrive"):
            captioner(IMAGES[1])
        sail.FAULTS.copies = set()
        assert captioner(IMAGES[0]) == first
        sail.FAULTS.copies = {"sync_d2d"}
        with pytest.raises(BackendError, match="copy in the device's memory failed"):
            captioner.batch(IMAGES[:1], num_beams=3)


def test_tensors_of_one_image_serve_the_next(reference_artifacts: Path, sail):
    with Captioner.from_artifacts(reference_artifacts, target="bm1688", device="0") as captioner:
        captioner(IMAGES[0])
        used = sail.MEMORY.used
        captioner(IMAGES[1])
        assert sail.MEMORY.used == used > 0
        components = ("vision_encoder", "cross_key_values", "text_decoder")
        told = sum(_tensor_bytes(captioner.session(name).manifest) for name in components)
        assert sail.MEMORY.peak == pytest.approx(told, rel=0.1), "what info adds to the nets' own"


def test_the_oldest_release_is_named(reference_artifacts: Path, sail, capsys, monkeypatch):
    monkeypatch.setattr("runtime.sessions.board_memory._noted", [])
    sail.release("3.9.0")
    for _ in range(2):
        with Captioner.from_artifacts(reference_artifacts, target="bm1688", device="0") as found:
            found.session("text_decoder").load()
    said = capsys.readouterr().err
    assert said.count("note: sophon-sail") == 1
    assert "install 3.10.7" in said


@pytest.mark.usefixtures("sail")
def test_keys_and_values_get_the_dtype_that_the_decoder_takes(reference_artifacts: Path):
    folder = reference_artifacts / "caption" / "BM1684X"
    manifests = {
        name: read_component_manifest(next(folder.glob(f"*{name}*_f16_1b.manifest.json")))
        for name in ("cross_key_values", "text_decoder")
    }
    options = SessionOptions(device="0")
    projection = SailSession(manifests["cross_key_values"], options)
    decoder = SailSession(manifests["text_decoder"], options)
    decoder.load()
    states = np.random.default_rng(0).normal(size=projection.inputs[0].shape).astype(np.float32)
    cross = projection.cross_states({"encoder_hidden_states": states})
    (half,) = cross.tensors
    before = {
        spec.name: widened(projection.memory.read(half[spec.name], spec))
        for spec in projection.outputs
    }
    step = decoder.net("step")
    wide = replace(step, inputs=tuple(replace(spec, dtype="float32") for spec in step.inputs))
    for _ in range(2):  # a second prompt finds them converted
        cross.fit(decoder, wide)
        for name, expected in before.items():
            found = cross.tensors[0][name].asnumpy()
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, expected)


@pytest.mark.usefixtures("sail")
def test_a_board_is_chosen_when_the_driver_is_there(reference_artifacts: Path):
    with Captioner.from_artifacts(reference_artifacts, target="bm1684x") as captioner:
        assert captioner.session("text_decoder").options.device == "0"


@pytest.mark.usefixtures("sail")
def test_an_unknown_device_is_refused(reference_artifacts: Path):
    with (
        Captioner.from_artifacts(reference_artifacts, target="bm1684x", device="7") as captioner,
        pytest.raises(BackendError, match="device 7"),
    ):
        captioner.batch(IMAGES[:1])


def test_without_the_driver_the_message_says_what_to_do(reference_artifacts: Path):
    with (
        Captioner.from_artifacts(reference_artifacts, target="bm1684x", device="0") as captioner,
        pytest.raises(BackendError, match="simulator"),
    ):
        captioner.batch(IMAGES[:1])


class TestTraps:
    """The stand-in refuses and garbles what the real library does."""

    def tensor(self, sail, dtype):
        return sail.Tensor(sail.Handle(0), [2, 2], dtype, False, True)

    def test_half_precision_wants_bits(self, sail):
        values = np.array([[1, 2], [3, 4]], dtype=np.float16)
        tensor = self.tensor(sail, sail.Dtype.BM_FLOAT16)
        with pytest.raises(sail.SailTensorError, match="Wrong dtype"):
            tensor.update_data(values)
        tensor.update_data(values.view(np.uint16))
        assert tensor.asnumpy().dtype == np.uint16
        assert (tensor.asnumpy().view(np.float16) == values).all()

    def test_int64_becomes_float_and_is_refused(self, sail):
        with pytest.raises(sail.SailTensorError, match="Wrong dtype"):
            self.tensor(sail, sail.Dtype.BM_INT32).update_data(np.ones((2, 2), dtype=np.int64))

    def test_before_3_10_7_a_wrong_dtype_is_taken_as_its_bytes(self, sail):
        sail.release("3.10.2")
        tensor = self.tensor(sail, sail.Dtype.BM_INT32)
        tensor.update_data(np.ones((2, 2), dtype=np.int64))
        assert (tensor.asnumpy() == 0x3F800000).all()

    def test_3_9_0_ends_the_process_on_an_error(self):
        script = (
            f"import sys; sys.path[:0] = [{str(STAND_IN)!r}, {str(STAND_IN.parents[1])!r}]\n"
            "import numpy as np\n"
            "from sophon import sail\n"
            "sail.release('3.9.0')\n"
            "tensor = sail.Tensor(sail.Handle(0), [2], sail.Dtype.BM_FLOAT32, False, True)\n"
            "try:\n    tensor.update_data(np.zeros(3, np.float32))\n"
            "except BaseException:\n    print('caught')\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=False
        )
        assert done.returncode == 2004 % 256
        assert "caught" not in done.stdout

    def test_a_view_does_not_keep_its_tensor(self, sail):
        whole = self.tensor(sail, sail.Dtype.BM_FLOAT32)
        part = sail.Tensor(whole, [1], 3, True)
        part.update_data(np.ones(1, np.float32))
        assert whole.asnumpy().reshape(-1).tolist() == [0, 0, 0, 1]
        del whole
        with pytest.raises(AssertionError, match="freed"):
            part.asnumpy()

    @pytest.mark.parametrize(
        ("dtype", "name"), [("float16", "BM_FLOAT16"), ("bfloat16", "BM_BFLOAT16")]
    )
    def test_the_session_moves_half_precision_as_bits(
        self, sail, reference_artifacts: Path, dtype: str, name: str
    ):
        folder = reference_artifacts / "caption" / "BM1684X"
        path = next(folder.glob("*cross_key_values*.manifest.json"))
        session = SailSession(read_component_manifest(path), SessionOptions(device="0"))
        session.load()
        values = np.array([[0.5, -2.0], [3.0, 1024.0]], dtype=np.float32)
        spec = TensorSpec("x", "x", (2, 2), dtype)
        tensor = self.tensor(sail, getattr(sail.Dtype, name))
        session.memory.write(tensor, values, spec)
        assert (widened(session.memory.read(tensor, spec)) == values).all()

    def test_numpy_calls_need_system_memory(self, sail, reference_artifacts: Path):
        folder = reference_artifacts / "caption" / "BM1684X"
        path = next(folder.glob("*cross_key_values*.bmodel"))
        engine = sail.Engine(str(path), 0, sail.IOMode.DEVIO)
        graph = engine.get_graph_names()[0]
        name = engine.get_input_names(graph)[0]
        with pytest.raises(sail.SailEngineError, match="bad input"):
            engine.process(graph, {name: np.zeros((1, 65, 128), dtype=np.float32)})
