"""Steps of a BModel build that are Python of ours, one command each: a dry run prints them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compile.backend import BUDGET_BYTES, Job, read_source
from compile.bmodel.build import BModelBuild
from compile.bmodel.plan import TABLE, THRESHOLDS, Preparation, plan_bmodel
from configs.layout import Layout
from pipeline.command import exit_codes, select
from pipeline.tpu_tools.process import MemoryBudget, VendorTools

Text = Annotated[str, typer.Option()]
Config = Annotated[Path, typer.Option()]


@exit_codes
def prepare(config: Config, task: Text, component: Text, rewrites: Text = "") -> None:
    """Rewrite an exported graph and fix its shapes, in the work folder."""
    selection = select(config, task=task, component=component)
    layout = Layout(selection.pipeline)
    source = read_source(layout, selection.tasks[0], selection.components[0])
    wanted = Preparation.of(layout, source, tuple(rewrites.split(",")) if rewrites else ())
    BModelBuild(MemoryBudget(BUDGET_BYTES), VendorTools()).prepare(wanted)


@exit_codes
def calibrate(config: Config, target: Text, task: Text, component: Text, precision: Text) -> None:
    """Write thresholds and quantize table where each net of an artifact is compiled."""
    from compile.bmodel.integers import quantizer
    from compile.bmodel.prepare import read_prepared

    chosen = select(config, task=task, component=component, target=target, precision=precision)
    job = Job(Layout(chosen.pipeline), chosen.tasks[0], chosen.components[0], *chosen.targets[0])
    plan = plan_bmodel(job, read_source(job.layout, job.task, job.component)).known
    prepared = read_prepared(plan.preparation.intermediate.folder)
    found = {}
    for net in plan.nets:
        if not net.shape.is_variant:
            # The MLIR is linked there from whichever folder the commands before made it in.
            one = quantizer.net_to_quantize(plan, net, prepared, net.folder)
            found[net.name] = quantizer.calibrate(one)
        (net.folder / THRESHOLDS).write_text(found[net.shape.net].thresholds)
        (net.folder / TABLE).write_text(found[net.shape.net].table)
