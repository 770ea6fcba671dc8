"""What a gate found, as JUnit's XML: a test case for each cell, which most CI systems show."""

from __future__ import annotations

import re
from itertools import groupby
from xml.etree import ElementTree

from harness.gate.cells import Cell
from harness.gate.judge import Report
from harness.gate.pace import Pace
from harness.gate.sheets import NUMBERS, numbers, reason
from harness.printable import printable

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def as_xml(report: Report) -> str:
    """A suite for each data set. What only warns passes and says so; what is ignored is skipped."""
    root = ElementTree.Element("testsuites", name="harness regress")
    items: list[Cell | Pace] = [*report.cells, *report.paces]
    for dataset, those in groupby(sorted(items, key=_dataset), key=_dataset):
        suite = ElementTree.SubElement(root, "testsuite", name=_text(dataset))
        for item in those:
            _case(suite, item)
        _count(suite)
    _count(root)
    ElementTree.indent(root)
    body = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{body}\n'


def _dataset(item: Cell | Pace) -> str:
    return item.dataset


def _case(suite: ElementTree.Element, item: Cell | Pace) -> None:
    metric = item.metric if isinstance(item, Cell) else "images a second"
    case = ElementTree.SubElement(
        suite,
        "testcase",
        classname=_text(f"{item.dataset}.{item.task}"),
        name=_text(f"{item.model} · {item.protocol} · {metric}"),
        time="0",
    )
    if isinstance(item, Pace):
        if item.slow:
            told = f"{item.candidate:.1f} images/s of {item.baseline:.1f}: {item.ratio:.2f}"
            ElementTree.SubElement(case, "failure", type="slower", message=told)
        return
    message = _text(_told(item))
    if item.action == "fail":
        ElementTree.SubElement(case, "failure", type=item.state, message=message)
    elif item.action == "warn":
        ElementTree.SubElement(case, "system-out").text = message
    elif item.action == "ignore":
        ElementTree.SubElement(case, "skipped", message=message)


def _told(cell: Cell) -> str:
    """``regressed: baseline 50.0, candidate 47.0, …``."""
    facts = zip(NUMBERS, numbers(cell)[1:], strict=True)
    known = [f"{name} {value}" for name, value in facts if value != "–"]
    return ": ".join(filter(None, [cell.state, reason(cell), ", ".join(known)]))


def _count(element: ElementTree.Element) -> None:
    for what, tag in (("tests", "testcase"), ("failures", "failure"), ("skipped", "skipped")):
        element.set(what, str(len(element.findall(f".//{tag}"))))


def _text(text: str) -> str:
    """Without what a terminal should not be given, or XML cannot hold."""
    return _NOT_XML.sub("\ufffd", printable(text))
