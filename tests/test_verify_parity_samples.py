"""Every shape that a net was compiled for gets a call to compare, its main one included."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from configs.schema import Component
from runtime.files.manifests import ComponentManifest, component_manifests, read_task_manifest
from verify.parity.inputs import Graphs, Sample, SampleSource
from verify.parity.padding import fixed_lengths


def of_two_lengths(
    manifest: ComponentManifest, graphs: Graphs, longest: int, shorter: int
) -> ComponentManifest:
    """As if compiled for texts and prompts of two lengths."""
    task = graphs.manifest
    encoder_tokens = task.dimensions.image_tokens

    def nets(tokens: int):
        shapes = replace(task.shapes, text_tokens=tokens)
        return fixed_lengths(manifest, shapes, encoder_tokens).nets

    def axes(name: str, tokens: int) -> dict[str, int]:
        length = 1 if name == "step" else tokens
        return {"batch": 1, "text_tokens": length, "past_tokens": task.shapes.past_tokens or 0}

    made = []
    for main, other in zip(nets(longest), nets(shorter), strict=True):
        variant = replace(other, name=f"{main.name}_{shorter}t", axes=axes(main.name, shorter))
        variants = () if main.name == "step" else (variant,)
        made.append(replace(main, axes=axes(main.name, longest), variants=variants))
    return replace(manifest, nets=tuple(made))


def reached(exported: Path, longest: int, shorter: int) -> dict[str, list[Sample]]:
    """Samples of a caption decoder by the variant that their shapes choose."""
    folder = exported / "caption"
    component: Component = "text_decoder"
    graphs = Graphs(
        read_task_manifest(folder / "manifest.json"),
        {m.component: m for m in component_manifests(folder) if m.target == "onnx"},  # type: ignore[misc]
    )
    nets = {name: session.manifest for name, session in graphs.sessions.items()}
    nets[component] = of_two_lengths(nets[component], graphs, longest, shorter)
    past = graphs.manifest.shapes.past_tokens
    source = SampleSource(graphs, nets, scenes=2, seed=0, past_tokens=past, few=True)
    found: dict[str, list[Sample]] = {}
    for sample in source.samples(component):
        net = nets[component].net(str(sample.net))
        shapes = {name: array.shape for name, array in sample.feeds.items()}
        found.setdefault(net.taking(shapes).name, []).append(sample)
    return found


def test_a_short_prompt_reaches_the_longest_first_pass_too(exported_artifacts: Path):
    found = reached(exported_artifacts, 8, 4)
    assert {"first_pass", "first_pass_4t", "step"} <= set(found)
    (padded,), (short, *_) = found["first_pass"], found["first_pass_4t"]
    assert padded.feeds["input_ids"].shape == (1, 8)
    assert short.name in padded.name
    # Padding on the left changes neither the logits nor what is kept of the real tokens.
    for name, expected in short.expected.items():
        rows, short_rows = padded.rows_of(name), short.rows_of(name)
        actual = padded.expected[name] if rows is None else padded.expected[name][:, rows]
        wanted = expected if short_rows is None else expected[:, short_rows]
        np.testing.assert_allclose(actual, wanted, atol=2e-5, err_msg=name)
