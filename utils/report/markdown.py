"""GitHub's Markdown of headings, paragraphs, lists, tables and pictures.

In texts, `backticks` mark what is set in typewriter letters; everything else is taken literally.
"""

import re
from collections.abc import Iterable, Sequence


def heading(level: int, text: str) -> str:
    """A heading; that of level 1 is the title."""
    return "#" * level + " " + paragraph(text)


def paragraph(text: str) -> str:
    """Escape what Markdown would take for markup, outside code."""
    parts = re.split(r"(`[^`]*`)", text)
    parts[::2] = (re.sub(r"([\\*_<>\[\]#|$~])", r"\\\1", part) for part in parts[::2])
    parts[1::2] = (part.replace("|", "\\|") for part in parts[1::2])
    return "".join(parts)


def bullets(items: Iterable[str]) -> str:
    """A list."""
    return "\n".join(f"- {paragraph(item)}" for item in items)


def table(caption: str, header: Sequence[str], rows: Iterable[Sequence[str]], align: str) -> str:
    """A table below its caption; `align` has a letter per column, `l` for left or `r` for right."""
    head, *body = ([paragraph(cell) for cell in row] for row in (header, *rows))
    # Pandoc makes the columns of a wide table as wide as their rules.
    widths = [max(3, *map(len, column)) for column in zip(head, *body, strict=True)]
    rules = ["-" * n + ":" * (side == "r") for n, side in zip(widths, align, strict=True)]
    lines = [f"| {' | '.join(row)} |" for row in (head, rules, *body)]
    return "\n".join([f"*{paragraph(caption)}*", "", *lines])


def picture(file_name: str, caption: str) -> str:
    """A figure beside the document, above its caption."""
    return f"![{file_name.partition('.')[0]}]({file_name})\n\n*{paragraph(caption)}*"
