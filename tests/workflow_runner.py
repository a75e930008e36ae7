"""Runs the ``run:`` lines of a GitHub workflow in a folder, job by job; actions have stand-ins."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

_EXPRESSION = re.compile(r"\$\{\{\s*(.*?)\s*\}\}")


@dataclass
class Runner:
    """A runner for reusable workflows whose matrix comes from an earlier job."""

    #: the checkout
    folder: Path
    #: where uploaded artifacts lie, one folder each
    store: Path
    inputs: dict[str, Any]
    environment: dict[str, str] = field(default_factory=dict)
    #: what ran: (job, name of the step, exit code)
    ran: list[tuple[str, str, int]] = field(default_factory=list)
    #: names of the actions that were used, and with which inputs
    used: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    #: step summaries
    summary: str = ""
    _needs: dict[str, Any] = field(default_factory=dict)

    def run(self, workflow: Path) -> bool:
        """Runs all jobs in their order; whether all succeeded."""
        text = yaml.safe_load(workflow.read_text())
        top = {"inputs": self.inputs, "needs": self._needs}
        variables = {k: self._filled(v, top) for k, v in (text.get("env") or {}).items()}
        good = True
        for name, job in text["jobs"].items():
            matrix = (job.get("strategy") or {}).get("matrix")
            entries = json.loads(self._filled(matrix, top))["include"] if matrix else [{}]
            succeeded = True
            for entry in entries:
                succeeded &= self._job(name, job, {**top, "matrix": entry}, variables)
            self._needs[name]["result"] = "success" if succeeded else "failure"
            good &= succeeded
        return good

    def _job(
        self, name: str, job: dict[str, Any], top: dict[str, Any], variables: dict[str, str]
    ) -> bool:
        steps: dict[str, Any] = {}
        context: dict[str, Any] = {**top, "steps": steps, "runner": {"os": "Linux"}}
        own = {k: self._filled(v, context) for k, v in (job.get("env") or {}).items()}
        context["env"] = {**variables, **own}
        good = True
        for step in job["steps"]:
            if not good and "cancelled()" not in str(step.get("if", "")):
                continue
            if "inputs.pipeline != ''" in str(step.get("if", "")) and not self.inputs["pipeline"]:
                continue
            if "uses" in step:
                given = {k: self._filled(v, context) for k, v in (step.get("with") or {}).items()}
                good &= self._action(step["uses"].partition("@")[0], given)
                continue
            local = {k: self._filled(v, context) for k, v in (step.get("env") or {}).items()}
            status, outputs = self._shell(step["run"], {**context["env"], **local})
            self.ran.append((name, step.get("name", ""), status))
            if "id" in step:
                steps[step["id"]] = {"outputs": outputs}
            good &= status == 0
        outputs = {k: self._filled(v, context) for k, v in (job.get("outputs") or {}).items()}
        self._needs[name] = {"outputs": outputs}
        return good

    def _shell(self, script: str, variables: dict[str, str]) -> tuple[int, dict[str, str]]:
        assert "${{" not in script, "values reach a script in its environment alone"
        files = {
            name: self.store.parent / name for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")
        }
        for path in files.values():
            path.write_text("")
        result = subprocess.run(
            ["/bin/bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
            cwd=self.folder,
            env={
                **os.environ,
                **self.environment,
                **variables,
                **{name: str(path) for name, path in files.items()},
                "RUNNER_TEMP": str(self.store.parent),
                "GITHUB_ACTIONS": "true",
            },
            capture_output=True,
            text=True,
            timeout=1800,
            check=False,
        )
        print(result.stdout, result.stderr)
        self.summary += files["GITHUB_STEP_SUMMARY"].read_text()
        lines = files["GITHUB_OUTPUT"].read_text().splitlines()
        return result.returncode, dict(line.split("=", 1) for line in lines)

    def _action(self, name: str, given: dict[str, str]) -> bool:
        self.used.append((name, given))
        if name == "actions/upload-artifact":
            target = self.store / given["name"]
            paths = [
                p for line in given["path"].split("\n") if line for p in self.folder.glob(line)
            ]
            for path in paths:
                if path.is_dir() and len(paths) == 1:
                    shutil.copytree(path, target, dirs_exist_ok=True)
                else:
                    target.mkdir(parents=True, exist_ok=True)
                    copy = shutil.copytree if path.is_dir() else shutil.copy
                    copy(path, target / path.name)
            return bool(paths)
        if name == "actions/download-artifact":
            for path in self.store.glob(given["pattern"]):
                shutil.copytree(path, self.folder / given.get("path", ""), dirs_exist_ok=True)
        return True

    def _filled(self, value: Any, context: dict[str, Any]) -> str:
        """A value with its expressions replaced."""
        return _EXPRESSION.sub(lambda found: self._evaluated(found[1], context), str(value))

    def _evaluated(self, expression: str, context: dict[str, Any]) -> str:
        if " && " in expression:
            condition, _, rest = expression.partition(" && ")
            yes, _, no = rest.rpartition(" || ")
            return self._evaluated(yes if self._evaluated(condition, context) else no, context)
        for part in expression.split(" || "):
            if value := self._term(part.strip(), context):
                return value
        return ""

    def _term(self, term: str, context: dict[str, Any]) -> str:
        if found := re.fullmatch(r"format\('caller/\{0\}', (.*)\)", term):
            return f"caller/{self._term(found[1], context)}"
        if term.startswith(("hashFiles(", "github.")):
            return "0" * 8
        if found := re.fullmatch(r"fromJSON\((.*?)\)((?:\.\w+|\[\d+\])*)", term):
            value = json.loads(self._term(found[1], context))
            for name, index in re.findall(r"\.(\w+)|\[(\d+)\]", found[2]):
                value = value[name] if name else value[int(index)]
            return value if isinstance(value, str) else json.dumps(value)
        value = context
        for name in term.split("."):
            value = (value or {}).get(name)
        return str(value or "")
