"""How a bundle was made: SLSA provenance, and the list of its materials (CycloneDX)."""

from __future__ import annotations

import json
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.tool import ToolRepository
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from bundle.verdict import Verdict
from configs.layout import REPOSITORY_ROOT
from configs.load import shown
from pipeline.command import Selection
from pipeline.manifest import file_sha256
from pipeline.sources import source_digest
from runtime.bundles.format import Description
from runtime.bundles.statements import byproduct

BUILD_TYPE = "urn:blip-edge:bundle:v1"
BUILDER = "urn:blip-edge:make-bundle"
#: Serial numbers of SBOMs are UUIDs of this space and the digests.
_SPACE = uuid.uuid5(uuid.NAMESPACE_URL, BUILD_TYPE)
_COMPILERS = ("compile.bmodel.backend", "compile.ir.backend", "export.pipeline")


def provenance(
    verdict: Verdict, selection: Selection, described: Description, digests: Mapping[str, str]
) -> dict[str, Any]:
    """The predicate of SLSA's provenance, version 1; no time and no host are in it."""
    checkpoint = verdict.task.manifest.checkpoint
    dependencies = [
        {
            "name": "checkpoint",
            "uri": checkpoint.source + (f"@{checkpoint.revision}" if checkpoint.revision else ""),
            "digest": {"sha256": checkpoint.weights_sha256},
        },
        {
            "name": "pipeline file",
            "uri": shown(selection.file),
            "digest": {"sha256": file_sha256(selection.file)},
        },
        *(
            {"name": f"graph {component}", "uri": name, "digest": {"sha256": record.sha256}}
            for component, manifest in verdict.task.onnx.components.items()
            for name, record in sorted(manifest.runtime_files.items())
        ),
        *_commit(),
    ]
    return {
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": {
                "pipeline": described.pipeline,
                "task": described.task,
                "target": described.target,
                "precision": described.precision,
                "wheels": described.wheels,
            },
            "internalParameters": {
                "sources": source_digest(*_COMPILERS),
                "tools": _tools(verdict),
                "commands": [
                    list(command)
                    for manifest in verdict.shipped.components
                    for command in manifest.commands
                ],
            },
            "resolvedDependencies": dependencies,
        },
        "runDetails": {
            "builder": {"id": BUILDER, "version": {"blip-edge": described.version}},
            "byproducts": [byproduct(digests)],
        },
    }


def _commit() -> Iterator[dict[str, Any]]:
    """The commit of the checkout, where it is one without changes."""
    try:
        said = [
            subprocess.run(
                ["git", *command],  # noqa: S607 - whichever git the user has
                cwd=REPOSITORY_ROOT,
                capture_output=True,
                text=True,
                check=True,
            ).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
        ]
    except (OSError, subprocess.CalledProcessError):
        return
    if not said[1]:
        yield {"name": "sources", "uri": "git:blip-edge", "digest": {"gitCommit": said[0]}}


def _tools(verdict: Verdict) -> dict[str, str]:
    every = [*verdict.shipped.components, *verdict.task.onnx.components.values()]
    return {name: version for manifest in every for name, version in sorted(manifest.tools.items())}


def materials(verdict: Verdict, described: Description, digests: Mapping[str, str]) -> str:
    """CycloneDX: every file, every wheel, the weights; the tools that made them. No time."""
    checkpoint = verdict.task.manifest.checkpoint
    files = [
        _component(name, ComponentType.FILE, digest, ref=f"file:{name}")
        for name, digest in sorted(digests.items())
    ]
    wheels = [
        _wheel(Path(name).name, digest)
        for name, digest in sorted(digests.items())
        if name.endswith(".whl")
    ]
    weights = _component(
        checkpoint.source,
        ComponentType.MACHINE_LEARNING_MODEL,
        checkpoint.weights_sha256,
        ref="weights",
        version=checkpoint.revision,
        description=checkpoint.architecture,
    )
    tools = [
        Component(
            name=name, version=version, type=ComponentType.APPLICATION, bom_ref=f"tool:{name}"
        )
        for name, version in sorted(_tools(verdict).items())
    ]
    root = Component(
        name=described.name,
        version=described.version,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref="bundle",
    )
    parts = [*files, *wheels, weights]
    bom = Bom(
        components=parts,
        serial_number=uuid.uuid5(_SPACE, json.dumps(sorted(digests.items()))),
        metadata=BomMetaData(component=root, tools=ToolRepository(components=tools)),
    )
    bom.register_dependency(root, parts)
    data = json.loads(JsonV1Dot6(bom).output_as_string())
    # The standard does without it; a clock would make two builds differ.
    data["metadata"].pop("timestamp", None)
    return json.dumps(data, indent=1, sort_keys=True) + "\n"


def _component(name: str, kind: ComponentType, sha256: str, *, ref: str, **more: Any) -> Component:
    hashes = [HashType(alg=HashAlgorithm.SHA_256, content=sha256)]
    return Component(name=name, type=kind, hashes=hashes, bom_ref=ref, **more)


def _wheel(file: str, sha256: str) -> Component:
    name, version = file.split("-")[:2]
    url = PackageURL("pypi", name=name.replace("_", "-").lower(), version=version)
    kind = ComponentType.LIBRARY
    return _component(url.name, kind, sha256, ref=str(url), version=version, purl=url)
