"""What a build does first, and what it does not do twice."""

from __future__ import annotations

from pathlib import Path

from compile.backend import read_source
from compile.bmodel.prepare import FIX_SHAPES, Prepared, PreparedNet, copy_prepared, read_prepared
from compile.pipeline import _longest_first, _Planned, backends, jobs
from pipeline.command import select
from pipeline.manifest import HostLookup, Rewrite
from pipeline.tpu_tools.process import MemoryBudget, VendorTools
from tests.compile_private import ROOT


def test_the_largest_component_of_a_set_is_built_first(exported_artifacts: Path) -> None:  # noqa: ARG001
    selection = select(ROOT / "configs" / "reference.yaml", task="itm", target="bm1684,bm1688")
    offered = backends(MemoryBudget(1), VendorTools())["sophon"]
    planned = [
        _Planned(offered.plan(job, read_source(job.layout, job.task, job.component)), offered, {})
        for job in jobs(selection)
    ]
    ordered = _longest_first(planned)
    assert {id(one) for one in ordered} == {id(one) for one in planned}
    plans = [one.plan for one in ordered]
    assert [plan.job.target.name for plan in plans] == ["bm1684"] * 4 + ["bm1688"] * 4
    for half in (plans[:4], plans[4:]):
        sizes = [plan.source.size_bytes for plan in half]
        assert sizes == sorted(sizes, reverse=True)
        assert half[-1].job.component == "vision_projection"


def test_graphs_that_a_rewrite_left_alone_are_linked_not_made_again(tmp_path: Path) -> None:
    made, adopted = tmp_path / "made", tmp_path / "adopted"
    made.mkdir()
    adopted.mkdir()

    def rewrite(name: str, sites: int) -> Rewrite:
        return Rewrite(name=name, reason="", sites=sites, max_abs_error=0.0)

    net = PreparedNet(name="main", file="main.onnx", inputs={}, outputs={}, attentions=0)
    record = Prepared(
        nets=(net,),
        rewrites=(rewrite("used", 2), rewrite("idle", 0), rewrite(FIX_SHAPES, 0)),
        lookups=(HostLookup(indices="ids", input="rows", table="ids.npy"),),
        weights_bytes=3,
    )
    (made / "prepared.json").write_text(record.model_dump_json())
    for name in ("main.onnx", "weights.bin", "ids.npy", "contents.json"):
        (made / name).write_text(name)
    copy_prepared(made, adopted)
    found = read_prepared(adopted)
    assert [one.name for one in found.rewrites] == ["used", FIX_SHAPES]
    assert found.model_copy(update={"rewrites": record.rewrites}) == record
    assert {path.name for path in adopted.iterdir()} == {
        *("main.onnx", "weights.bin", "ids.npy", "prepared.json")
    }
    # onnx refuses to read weights from a file with several names.
    assert (adopted / "weights.bin").stat().st_nlink == 1
    assert (adopted / "weights.bin").read_text() == "weights.bin"
    # The first record still names all that was tried.
    assert read_prepared(made) == record
