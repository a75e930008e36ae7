"""The two in-toto statements of a bundle: how it was made, and what verification found."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, Tuple

from .format import (
    PROVENANCE_FILE,
    SBOM_FILE,
    VERDICT_FILE,
    BundleError,
    Description,
    is_subject,
    read_json,
)
from .shipped import Shipped

STATEMENT = "https://in-toto.io/Statement/v1"
PROVENANCE = "https://slsa.dev/provenance/v1"
VERDICT = "urn:blip-edge:parity-verdict:v1"

#: Figures of a check: the tolerance's key that bounds each from above, or from below.
_AT_MOST = {
    "relative_error": "max_relative_error",
    "max_probability_error": "max_probability_error",
    "max_similarity_error": "max_similarity_error",
}
_AT_LEAST = {
    "cosine": "min_cosine",
    "exact_match_rate": "min_agreement",
    "decision_match_rate": "min_agreement",
}
#: What must have been checked of every component's graph, which the artifact was compiled from.
_GRAPH_GAPS = ("hf_vs_wrapper", "wrapper_vs_onnxruntime")
_GRAPH = "onnx"
#: Of OpenVINO's IR, both ways of computing.
_MODES = {"openvino": ("exact", "fast"), "openvino_npu": ("exact", "fast")}


def statement(digests: Mapping[str, str], kind: str, predicate: Mapping[str, Any]) -> Any:
    """An in-toto statement about all files that statements are about."""
    subject = [
        {"name": name, "digest": {"sha256": digests[name]}}
        for name in sorted(digests)
        if is_subject(name)
    ]
    parts = {"_type": STATEMENT, "subject": subject, "predicateType": kind}
    return {**parts, "predicate": predicate}


def check_statements(folder: Path, digests: Mapping[str, str]) -> Dict[str, Any]:
    """Checks that both statements are about exactly these files; returns the verdict.

    Raises:
        BundleError: one is missing, damaged, or about other files.
    """
    predicates = {}
    for name, kind in ((PROVENANCE_FILE, PROVENANCE), (VERDICT_FILE, VERDICT)):
        data = read_json(folder / name)
        if (data.get("_type"), data.get("predicateType")) != (STATEMENT, kind):
            raise BundleError(f"{name}: not a statement of type {kind}")
        wanted = statement(digests, kind, {})["subject"]
        found = data.get("subject")
        if found != wanted:
            listed = found if isinstance(found, list) else []
            other = [one for one in (*wanted, *listed) if (one in wanted) != (one in listed)]
            which = other[0].get("name") if other and isinstance(other[0], dict) else "subject"
            raise BundleError(f"{name}: {which}: the statement is not about this bundle's files")
        predicates[name] = data.get("predicate")
    if _byproduct(predicates[PROVENANCE_FILE]) != [byproduct(digests)]:
        raise BundleError(f"{PROVENANCE_FILE}: byproducts: {VERDICT_FILE} is not the one made then")
    verdict = predicates[VERDICT_FILE]
    if not isinstance(verdict, dict):
        raise BundleError(f"{VERDICT_FILE}: predicate: missing")
    return verdict


def byproduct(digests: Mapping[str, str]) -> Dict[str, Any]:
    """How the provenance names the verdict, which no subject can."""
    return {"name": VERDICT_FILE, "digest": {"sha256": digests[VERDICT_FILE]}}


def _byproduct(predicate: Any) -> Any:
    try:
        return predicate["runDetails"]["byproducts"]
    except (LookupError, TypeError):
        return None


def check_verdict(verdict: Mapping[str, Any], described: Description, found: Shipped) -> None:
    """Checks that a verdict is about these artifacts, whole, and passed by its own tolerances.

    Raises:
        BundleError: it is of other artifacts, something was not checked, or a check fails.
    """
    for key in ("pipeline", "task", "target", "precision"):
        if verdict.get(key) != getattr(described, key):
            raise BundleError(f"{VERDICT_FILE}: {key}: of another bundle ({verdict.get(key)!r})")
    root = found.task.folder.parent
    digests = {path.relative_to(root).as_posix(): sha for path, sha in found.digests.items()}
    if verdict.get("artifacts") != digests:
        raise BundleError(f"{VERDICT_FILE}: artifacts: the verdict is of other digests")
    if not described.verified:
        return
    checks = verdict.get("checks")
    if not isinstance(checks, list) or not all(isinstance(one, dict) for one in checks):
        raise BundleError(f"{VERDICT_FILE}: checks: missing")
    if verdict.get("passed") is not True or verdict.get("not_checked") != []:
        raise BundleError(f"{VERDICT_FILE}: passed: the verdict is not that of a verified artifact")
    for check in checks:
        reason = _fault(check)
        if reason:
            raise BundleError(f"{VERDICT_FILE}: {_name(check)}: {reason}")
    done = {_subject(check) for check in checks}
    for subject in _needed(described, found):
        if subject not in done:
            missing = " ".join(part for part in subject if part)
            raise BundleError(f"{VERDICT_FILE}: checks: {missing} is missing")


def check_materials(folder: Path, digests: Mapping[str, str]) -> None:
    """Checks that the list of materials names enclosed wheels and weights by their digests.

    Raises:
        BundleError: it is damaged, or lists other files.
    """
    listed = {
        part.get("name"): [h.get("content") for h in part.get("hashes", [])]
        for part in read_json(folder / SBOM_FILE).get("components", [])
        if isinstance(part, dict) and part.get("type") == "file"
    }
    for name, digest in digests.items():
        if is_subject(name) and name != SBOM_FILE and listed.pop(name, None) != [digest]:
            raise BundleError(f"{SBOM_FILE}: {name}: missing, or of another digest")
    if listed:
        raise BundleError(f"{SBOM_FILE}: {min(map(str, listed))}: no such file in the bundle")


def _needed(described: Description, found: Shipped) -> Iterable[Tuple[str, ...]]:
    modes = _MODES.get(described.target, ("",))
    target, kind = described.target, "scores" if described.task == "itm" else "tokens"
    yield "tokens", "", _GRAPH, "", kind
    for mode in modes:
        yield "tokens", "", target, mode, kind
    for component in found.task.components:
        for gap in _GRAPH_GAPS:
            yield gap, component, _GRAPH, "", "component"
        for mode in modes:
            yield "onnxruntime_vs_target", component, target, mode, "component"
    if found.combined is not None:
        yield "combined_file", "", target, "", "file"


def _subject(check: Mapping[str, Any]) -> Tuple[str, ...]:
    names = ("gap", "component", "target", "variant", "kind")
    return tuple(str(check.get(name) or "") for name in names)


def _name(check: Mapping[str, Any]) -> str:
    return " ".join(part for part in _subject(check)[:4] if part)


def _fault(check: Mapping[str, Any]) -> str:
    """Why a check does not pass by what it says itself; empty if it does."""
    metrics, tolerance = check.get("metrics"), check.get("tolerance")
    if not isinstance(metrics, dict) or not isinstance(tolerance, dict):
        return "has no metrics or no tolerance"
    samples = check.get("samples")
    if check.get("passed") is not True or check.get("problems") != []:
        return "did not pass"
    if not isinstance(samples, int) or samples < 1 or not tolerance.get("source"):
        return "compared nothing, or names no tolerance"
    for table, sign in ((_AT_MOST, 1), (_AT_LEAST, -1)):
        for figure, limit in table.items():
            if figure in metrics and limit in tolerance:
                value, bound = metrics[figure], tolerance[limit]
                # Written so that what is no number fails.
                if not (_number(value) and _number(bound) and sign * value <= sign * bound):
                    return f"{figure} {value} is beyond {limit} {bound}"
    quality: List[Any] = tolerance.get("quality") or []
    if any(not isinstance(one, dict) or one.get("passed") is not True for one in quality):
        return "quality: a limit is not kept"
    return ""


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
