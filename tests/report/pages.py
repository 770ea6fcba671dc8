"""A page read back: its tables as text, and the numbers that stand in their cells."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

VOID = {"meta", "input", "img", "br", "path", "circle"}


class Node:
    def __init__(self, tag: str, attributes: dict[str, str | None]) -> None:
        self.tag = tag
        self.attributes = attributes
        self.children: list[Node | str] = []

    @property
    def text(self) -> str:
        return "".join(each if isinstance(each, str) else each.text for each in self.children)

    def all(self, tag: str, **wanted: str) -> list[Node]:
        """Below this one; of ``wanted`` ``class_`` may be one of several."""
        found = []
        for each in self.children:
            if isinstance(each, str):
                continue
            classes = (each.attributes.get("class") or "").split()
            fits = all(
                value in classes
                if name == "class_"
                else each.attributes.get(name.replace("_", "-")) == value
                for name, value in wanted.items()
            )
            if each.tag == tag and fits:
                found.append(each)
            found += each.all(tag, **wanted)
        return found


class _Reader(HTMLParser):
    """Fails where a tag is closed that was not the last to be opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open = [Node("", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), (tag, attrs)
        node = Node(tag, dict(attrs))
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].children.append(Node(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def read(path: Path) -> Node:
    reader = _Reader()
    reader.feed(path.read_text())
    reader.close()
    assert len(reader.open) == 1, f"<{reader.open[-1].tag}> is not closed"
    return reader.open[0]


def numbers(row: Node) -> list[float | None]:
    """Of the cells that can be sorted by a number."""
    values: list[Any] = [cell.attributes.get("data-value") for cell in row.all("td")]
    return [float(each) if each else None for each in values if each is not None]
