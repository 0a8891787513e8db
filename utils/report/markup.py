"""A document of headings, text, tables and pictures, written as Markdown and as LaTeX.

In texts, `backticks` mark what is set in typewriter letters; everything else is taken literally.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence


@dataclasses.dataclass
class Heading:
    """A heading: level 1 is the title."""

    level: int
    text: str


@dataclasses.dataclass
class Text:
    """A paragraph."""

    text: str


@dataclasses.dataclass
class Bullets:
    """A list."""

    items: Sequence[str]


@dataclasses.dataclass
class Table:
    """A table.

    Attributes:
        caption: above it.
        header: one text per column.
        rows: texts.
        align: one letter per column: `l` left, `r` right, `p` a text that may take several lines.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    align: str


@dataclasses.dataclass
class Picture:
    """A figure beside the document.

    Attributes:
        name: the file's name without its suffix.
        suffix: that of the file, with its dot.
        caption: below it.
        width: as a share of the page's.
    """

    name: str
    suffix: str
    caption: str
    width: float = 1.0


Block = Heading | Text | Bullets | Table | Picture


def to_markdown(blocks: Sequence[Block]) -> str:
    """GitHub's Markdown."""
    return "\n\n".join(_markdown_block(block) for block in blocks) + "\n"


def _markdown_block(block: Block) -> str:
    if isinstance(block, Heading):
        return "#" * block.level + " " + markdown_text(block.text)
    if isinstance(block, Text):
        return markdown_text(block.text)
    if isinstance(block, Bullets):
        return "\n".join(f"- {markdown_text(item)}" for item in block.items)
    if isinstance(block, Picture):
        caption = markdown_text(block.caption)
        return f"![{block.name}]({block.name}{block.suffix})\n\n*{caption}*"
    rules = ["---:" if letter == "r" else "---" for letter in block.align]
    cells = [[markdown_text(cell) for cell in row] for row in (block.header, *block.rows)]
    rows = [f"| {' | '.join(row)} |" for row in (cells[0], rules, *cells[1:])]
    return "\n".join([f"*{markdown_text(block.caption)}*", "", *rows])


def markdown_text(text: str) -> str:
    """Escape what Markdown would take for markup, outside code."""
    return _by_part(
        text,
        lambda plain: re.sub(r"([\\*_<>\[\]#|$~])", r"\\\1", plain),
        lambda code: "`" + code.replace("|", "\\|") + "`",
    )


def to_latex(blocks: Sequence[Block], picture_suffix: str) -> str:
    """A whole LaTeX document, for pdflatex and the packages of every installation.

    Args:
        blocks: the document.
        picture_suffix: of the pictures' files: pdflatex reads `.png` and `.pdf`.
    """
    body = "\n\n".join(_latex_block(block, picture_suffix) for block in blocks)
    return (
        "\\documentclass[a4paper]{article}\n"
        "\\usepackage[margin=22mm]{geometry}\n"
        "\\usepackage{graphicx}\n"
        "\\usepackage{longtable}\n"
        "\\renewcommand{\\labelitemi}{$\\bullet$}\n"
        "\\setlength{\\parindent}{0pt}\n"
        "\\setlength{\\parskip}{6pt}\n"
        "\\emergencystretch=3em\n"
        "\\begin{document}\n\n" + body + "\n\n\\end{document}\n"
    )


def _latex_block(block: Block, picture_suffix: str) -> str:
    if isinstance(block, Heading):
        command = ("section*", "section", "subsection")[min(block.level, 3) - 1]
        text = latex_text(block.text)
        return f"\\{command}{{{f'{chr(92)}LARGE {text}' if block.level == 1 else text}}}"
    if isinstance(block, Text):
        return latex_text(block.text)
    if isinstance(block, Bullets):
        items = "\n".join(f"\\item {{}}{latex_text(item)}" for item in block.items)
        return f"\\begin{{itemize}}\n{items}\n\\end{{itemize}}"
    if isinstance(block, Picture):
        return (
            "\\begin{figure}[!htbp]\n\\centering\n"
            f"\\includegraphics[width={block.width:.2f}\\linewidth,height=0.85\\textheight,"
            f"keepaspectratio]{{{block.name}{picture_suffix}}}\n"
            f"\\caption{{{latex_text(block.caption)}}}\n\\end{{figure}}"
        )
    return _latex_table(block)


def _latex_table(table: Table) -> str:
    columns = "".join("p{0.42\\linewidth}" if letter == "p" else letter for letter in table.align)
    header, *rows = (
        " & ".join(latex_text(cell) for cell in row) + " \\\\"
        for row in (table.header, *table.rows)
    )
    lines = [
        "{\\footnotesize",
        f"\\begin{{longtable}}{{{columns}}}",
        f"\\caption{{{latex_text(table.caption)}}} \\\\",
        "\\hline", header, "\\hline", "\\endhead", *rows, "\\hline",
        "\\end{longtable}}",
    ]  # fmt: skip
    return "\n".join(lines)


_LATEX = {
    "\\": "\\textbackslash{}", "{": "\\{", "}": "\\}", "$": "{\\char36}", "&": "\\&", "#": "\\#",
    "%": "\\%", "_": "\\_", "^": "\\textasciicircum{}", "~": "\\textasciitilde{}",
    "<": "\\textless{}", ">": "\\textgreater{}", "|": "\\textbar{}", '"': "''", "-": "-{}",
    "[": "{[}", "]": "{]}", "\N{MULTIPLICATION SIGN}": "$\\times$",
}  # fmt: skip


def latex_text(text: str) -> str:
    """Escape everything that LaTeX would not print as it stands."""
    return _by_part(text, _escape_latex, lambda code: f"\\texttt{{{_escape_latex(code, True)}}}")


def _escape_latex(text: str, is_code: bool = False) -> str:
    pieces = []
    for character in text:
        if character in _LATEX:
            pieces.append(_LATEX[character])
        elif character.isascii() or (character <= "\u00ff" and character.isalpha()):
            pieces.append(character if character.isprintable() else " ")
        else:
            pieces.append("?")  # pdflatex has no letters for it
        if is_code and character in "_/=":
            pieces.append("\\allowbreak{}")
    return "".join(pieces)


def _by_part(text: str, plain: Callable[[str], str], code: Callable[[str], str]) -> str:
    """Apply one function to what stands between backticks, and another to the rest."""
    parts = text.split("`")
    return "".join(code(part) if odd % 2 else plain(part) for odd, part in enumerate(parts))
