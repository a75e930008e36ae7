"""Component checks: each artifact against its source, on real inputs."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.errors import InputError
from configs.load import shown
from configs.precisions import Arithmetic, Precision
from configs.schema import Component
from configs.tolerances import Tolerance, load_tolerances, record
from runtime.decoding.decoder_run import NEXT_LOGIT, NEXT_TOKEN
from runtime.files.manifests import ComponentManifest
from runtime.sessions.session import Session
from verify.artifacts import runtime_failures
from verify.parity.compare import (
    Comparison,
    compare,
    cosine,
    faults,
    needed,
    same_for_every_case,
    summary,
)
from verify.parity.inputs import Sample
from verify.results import Check, Subject

Array = NDArray[Any]

#: Most problems listed per check: the first ones say what is wrong.
MOST_PROBLEMS = 6
#: Outputs of a decoder that chooses the next token itself; the exported graph has none of them.
CHOICE = frozenset({NEXT_TOKEN, NEXT_LOGIT})
#: Outputs with fewer values than this have one cosine over all cases.
SMALL_OUTPUT = 16


@dataclass(frozen=True)
class RecordedCase:
    """One case of ``onnx/<component>.reference.npz``."""

    name: str
    inputs: dict[str, Array]
    #: outputs of the unmodified HuggingFace modules
    model: dict[str, Array]
    #: outputs of our export wrapper in torch
    wrapper: dict[str, Array]


def recorded_cases(manifest: ComponentManifest) -> list[RecordedCase]:
    """The reference data that export recorded beside an ONNX file.

    Raises:
        InputError: missing, damaged or empty.
    """
    path = manifest.folder / f"{manifest.component}.reference.npz"
    rebuild = f"run: make export TASK={manifest.task} COMPONENT={manifest.component} FORCE=1"
    cases: dict[str, dict[str, dict[str, Array]]] = {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for key in arrays.files:
                case, group, tensor = key.rsplit("/", 2)
                groups = cases.setdefault(case, {})
                groups.setdefault(group, {})[tensor] = arrays[key]
    except FileNotFoundError:
        raise InputError(f"{shown(path)}: missing; {rebuild}") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{shown(path)}: damaged ({error}); {rebuild}") from None
    names = ("inputs", "outputs.model", "outputs.wrapper")
    return [
        RecordedCase(name, *(found.get(group, {}) for group in names))
        for name, found in cases.items()
    ]


def hf_vs_wrapper(subject: Subject, manifest: ComponentManifest) -> Check:
    """Gap 1: HuggingFace's modules against our wrapper, both in torch, as recorded."""
    tolerance = _tolerance(subject, "f32")
    collected = Collected(manifest, tolerance)
    for case in recorded_cases(manifest):
        collected.case(case.name)
        for output, reference in case.model.items():
            if output not in case.wrapper:
                collected.problem(f"{case.name}: the wrapper has no output {output}")
                continue
            actual = _real_rows(manifest, reference, case.wrapper[output])
            collected.add(output, case.name, reference, actual)
    return collected.check(subject)


def wrapper_vs_onnxruntime(
    subject: Subject, manifest: ComponentManifest, session: Session
) -> Check:
    """Gap 2: the wrapper against the exported graph under onnxruntime, on recorded inputs."""
    tolerance = _tolerance(subject, "f32")
    collected = Collected(manifest, tolerance)
    for case in recorded_cases(manifest):
        collected.case(case.name)
        with runtime_failures():
            actual = session.run(case.inputs)
        collected.outputs(case.name, case.wrapper, actual)
    return collected.check(subject)


def padded_vs_unpadded(
    subject: Subject,
    manifest: ComponentManifest,
    pairs: Iterable[tuple[Sample, Sample]],
) -> Check:
    """Gap 2 again, under padding: the exported graph on padded inputs against bare ones.

    ``pairs`` holds (bare, padded) samples of one case; the real rows of the padded one count.
    """
    tolerance = _tolerance(subject, "f32")
    collected = Collected(manifest, tolerance)
    for bare, padded in pairs:
        collected.case(padded.name)
        for output, reference in bare.expected.items():
            rows = padded.rows_of(output)
            actual = padded.expected[output]
            if not np.isfinite(actual).all():
                collected.problem(f"{padded.name}: {output}: padded rows are not finite")
            collected.add(
                output, padded.name, reference, actual if rows is None else actual[:, rows]
            )
    return collected.check(subject)


def onnxruntime_vs_target(
    subject: Subject,
    manifest: ComponentManifest,
    session: Session,
    samples: Iterable[Sample],
    arithmetic: Arithmetic,
    on_sample: Callable[[str], None],
) -> Check:
    """Gap 3: the exported graph under onnxruntime against the compiled artifact."""
    tolerance = _tolerance(subject, arithmetic, manifest.built_as)
    own = own_outputs(manifest, subject.named_component)
    collected = Collected(manifest, tolerance, own)
    for sample in samples:
        on_sample(sample.name)
        collected.case(sample.name)
        with runtime_failures():
            answered = session.run(sample.feeds, net=sample.net)
        collected.choice(sample.name, answered)
        # Outputs of components that share the artifact have checks of their own.
        actual = {name: array for name, array in answered.items() if name in own}
        collected.outputs(sample.name, sample.expected, actual, sample)
    return collected.check(subject, {"arithmetic": arithmetic})


def own_outputs(manifest: ComponentManifest, component: Component) -> frozenset[str]:
    """Names of the outputs of an artifact that belong to one of the components it computes."""
    names = {spec.name for net in manifest.nets for spec in net.outputs} - CHOICE
    if not manifest.includes:
        return frozenset(names)
    projections = {name for name in names if name.startswith("cross.")}
    return frozenset(projections if component == "cross_key_values" else names - projections)


class Collected:
    """Comparisons of one artifact, gathered case by case."""

    def __init__(
        self,
        manifest: ComponentManifest,
        tolerance: Tolerance,
        own: frozenset[str] | None = None,
    ) -> None:
        """``own`` are the outputs to compare; None means all of the manifest's."""
        self._promised = {
            spec.name: spec
            for net in manifest.nets
            for spec in net.outputs
            if own is None or spec.name in own
        }
        self._tolerance = tolerance
        self._cases: list[str] = []
        self._comparisons: list[Comparison] = []
        self._references: dict[str, list[Array]] = {}
        self._small: dict[str, list[tuple[Array, Array]]] = {}
        self._problems: list[str] = []

    def case(self, name: str) -> None:
        """Begins a case."""
        self._cases.append(name)

    def problem(self, text: str) -> None:
        """Notes something wrong that is not an array's difference."""
        self._problems.append(text)

    def outputs(
        self,
        case: str,
        reference: dict[str, Array],
        actual: dict[str, Array],
        sample: Sample | None = None,
    ) -> None:
        """Compares all outputs of a case; missing and surplus ones are problems."""
        for output, expected in reference.items():
            if output not in actual:
                self.problem(f"{case}: no output {output}")
                continue
            found, rows = actual[output], None
            if sample is not None:
                rows = sample.rows_of(output)
                expected, found = (sample.compared(output, one) for one in (expected, found))
            self.add(output, case, expected, found, rows)
        for output in actual.keys() - reference.keys():
            self.problem(f"{case}: output {output} has no reference")

    def choice(self, case: str, actual: dict[str, Array]) -> None:
        """A token that the target chose must be the best one of its own logits, exactly.

        Whether it is the checkpoint's, whole answers decide: a near tie may fall either way.
        """
        if NEXT_TOKEN not in actual:
            return
        logits = actual["logits"]
        wrong = [
            f"{NEXT_TOKEN} is {found} with logit {logit:g}, the logits have {best} with {most:g}"
            for found, logit, best, most in zip(
                actual[NEXT_TOKEN].reshape(-1).tolist(),
                actual[NEXT_LOGIT].reshape(-1).tolist(),
                logits.argmax(axis=-1).tolist(),
                logits.max(axis=-1).tolist(),
                strict=True,
            )
            if found != best or logit != most
        ]
        for what in wrong:
            self.problem(f"{case}: {what}")

    def add(
        self, output: str, case: str, reference: Array, actual: Array, rows: slice | None = None
    ) -> None:
        """Compares one output."""
        # The session widens half precision, so users always get float32.
        self._comparisons.append(
            compare(output, case, reference, actual, rows=rows, dtype="float32")
        )
        self._references.setdefault(output, []).append(reference)
        if reference.size < SMALL_OUTPUT and actual.shape == reference.shape:
            self._small.setdefault(output, []).append((reference, actual))
        self._check_promise(output, case, actual)

    def _check_promise(self, output: str, case: str, actual: Array) -> None:
        spec = self._promised.get(output)
        if spec is None:
            self.problem(f"{case}: {output} is not in the manifest")
        elif len(spec.shape) != actual.ndim:
            self.problem(f"{case}: {output} has {actual.ndim} axes, the manifest {len(spec.shape)}")

    def _relate_to_common_scale(self) -> None:
        """Relates each output's errors to its largest value over all cases.

        Two logits that happen to lie near zero in one case would otherwise be asked for more
        digits than the arithmetic has. For the same reason such small outputs share one cosine.
        """
        scales: dict[str, float] = {}
        for c in self._comparisons:
            scales[c.output] = max(scales.get(c.output, 0.0), c.scale)
        pooled = {output: cosine(pairs) for output, pairs in self._small.items()}
        self._comparisons = [
            replace(
                c,
                scale=scales[c.output],
                relative_error=c.max_abs / scales[c.output],
                cosine=pooled.get(c.output, c.cosine),
            )
            if scales[c.output] > 0.0
            else c
            for c in self._comparisons
        ]

    def check(self, subject: Subject, more: dict[str, Any] | None = None) -> Check:
        """The finished check: worst figures, per output as well, and everything wrong."""
        self._relate_to_common_scale()
        problems = list(self._problems)
        missing = sorted(self._promised.keys() - self._references.keys())
        if self._comparisons and missing:
            problems.append(f"never compared: {', '.join(missing)}")
        for comparison in self._comparisons:
            problems += [
                f"{comparison.case}: {comparison.output}: {fault}"
                for fault in faults(comparison, self._tolerance)
            ]
        problems += [
            f"{output}: the same for {len(arrays)} different inputs: comparing it proves nothing"
            for output, arrays in self._references.items()
            if same_for_every_case(arrays)
        ]
        if not self._comparisons:
            problems.append("nothing was compared")
        if len(problems) > MOST_PROBLEMS:
            more_problems = len(problems) - MOST_PROBLEMS
            problems = [*problems[:MOST_PROBLEMS], f"and {more_problems} more"]
        by_output = {
            output: summary(c for c in self._comparisons if c.output == output)
            for output in self._references
        }
        tolerance = {**record(self._tolerance), "would_have_passed": needed(self._comparisons)}
        metrics = {
            **summary(self._comparisons),
            **(more or {}),
            "outputs": by_output,
            "cases": self._cases,
        }
        samples = len(self._cases) if self._comparisons else 0
        return Check(subject, samples, metrics, tolerance, tuple(problems))


def _tolerance(subject: Subject, arithmetic: Arithmetic, built_as: str | None = None) -> Tolerance:
    stored: Precision = built_as or subject.precision  # type: ignore[assignment]
    return load_tolerances().component(
        gap=subject.gap,
        target=subject.target,
        precision=stored,
        arithmetic=arithmetic,
        component=subject.named_component,
    )


def _real_rows(manifest: ComponentManifest, reference: Array, actual: Array) -> Array:
    """Rows that an unpadded reference has: prompts are padded on the left, others right."""
    if reference.ndim < 3 or reference.shape[1] >= actual.shape[1]:
        return actual
    rows = reference.shape[1]
    return actual[:, -rows:] if manifest.component == "text_decoder" else actual[:, :rows]
