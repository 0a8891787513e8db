"""The blocks of `contents.py` as GitHub's Markdown."""

import re
from collections.abc import Iterable

from utils.report.contents import Block, Code, Heading, Picture, Table


def to_markdown(blocks: Iterable[Block], suffix: str = "png") -> str:
    """A document; its pictures are files with this suffix."""
    return "\n\n".join(_write(block, suffix) for block in blocks) + "\n"


def _write(block: Block, suffix: str) -> str:
    match block:
        case Heading(level, text):
            return "#" * level + " " + _escape(text)
        case Code(text):
            return f"```python\n{text}\n```"
        case Picture(name, caption):
            return f"![{name}]({name}.{suffix})\n\n*{_escape(caption)}*"
        case Table():
            return _table(block)
        case str():
            return _escape(block)
    return "\n".join(f"- {_escape(item)}" for item in block)


def _table(table: Table) -> str:
    head, *body = ([_escape(cell) for cell in row] for row in (table.header, *table.rows))
    rules = ["---:" if side == "r" else "---" for side in table.align]
    lines = [f"| {' | '.join(row)} |" for row in (head, rules, *body)]
    return "\n".join([f"*{_escape(table.caption)}*", "", *lines])


def _escape(text: str) -> str:
    """Escape what Markdown would take for markup, outside code."""
    parts = re.split(r"(`[^`]*`)", text)
    parts[::2] = (re.sub(r"([\\*_<>\[\]#|$~])", r"\\\1", part) for part in parts[::2])
    parts[1::2] = (part.replace("|", "\\|") for part in parts[1::2])
    return "".join(parts)
