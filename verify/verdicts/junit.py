"""Checks as JUnit XML, which every CI service shows as tests."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from xml.etree import ElementTree

from verify.results import Check
from verify.verdicts.merging import set_name

#: What XML 1.0 cannot hold, escaped or not.
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_text(checks: Sequence[Check], not_simulated: Sequence[str] = ()) -> str:
    """A suite per set of artifacts, a case per check; what was not simulated is skipped."""
    root = ElementTree.Element("testsuites", name="blip-edge verify")
    cases = 0
    for name, group in groupby(sorted(checks, key=_set), key=_set):
        mine = list(group)
        skipped = name in not_simulated
        suite = _suite(root, name, mine, skipped=skipped)
        for check in mine:
            _case(suite, name, check)
        if skipped:
            _skip(suite, name)
        cases += len(mine) + skipped
    for name in sorted(set(not_simulated) - {_set(check) for check in checks}):
        _skip(_suite(root, name, [], skipped=True), name)
        cases += 1
    root.set("tests", str(cases))
    root.set("failures", str(sum(not check.passed for check in checks)))
    root.set("time", f"{sum(check.seconds for check in checks):.3f}")
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, "unicode") + "\n"


def _set(check: Check) -> str:
    subject = check.subject
    return set_name(subject.task, subject.target, subject.precision)


def _suite(
    root: ElementTree.Element, name: str, checks: Sequence[Check], *, skipped: bool
) -> ElementTree.Element:
    counts = {
        "tests": len(checks) + skipped,
        "failures": sum(not check.passed for check in checks),
        "errors": 0,
        "skipped": int(skipped),
    }
    suite = ElementTree.SubElement(root, "testsuite", name=name)
    suite.attrib |= {key: str(value) for key, value in counts.items()}
    suite.set("time", f"{sum(check.seconds for check in checks):.3f}")
    return suite


def _case(suite: ElementTree.Element, name: str, check: Check) -> None:
    subject = check.subject
    parts = (subject.component or subject.kind, subject.gap, subject.variant)
    case = ElementTree.SubElement(
        suite,
        "testcase",
        classname=name.replace(" ", "."),
        name=" ".join(part for part in parts if part),
        time=f"{check.seconds:.3f}",
    )
    problems = [_NO_XML.sub("\ufffd", one) for one in check.record()["problems"]]
    if problems:
        failure = ElementTree.SubElement(case, "failure", message=problems[0], type=subject.gap)
        failure.text = "\n".join(problems)


def _skip(suite: ElementTree.Element, name: str) -> None:
    case = ElementTree.SubElement(
        suite, "testcase", classname=name.replace(" ", "."), name="simulated answers", time="0"
    )
    ElementTree.SubElement(case, "skipped", message="not simulated; VERIFY=full does it")
