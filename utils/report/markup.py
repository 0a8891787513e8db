"""A document of headings, text, tables and pictures, written as Markdown and as LaTeX.

In texts, `backticks` mark what is set in typewriter letters and ⟦brackets⟧ mathematics in LaTeX's
notation; everything else is taken literally.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

ROWS_PER_TABLE = 40  # more do not fit on a page of LaTeX


class Heading(NamedTuple):
    """A heading; that of level 1 is the title, `below` it stands by whom and when."""

    level: int
    text: str
    below: str = ""


class Text(NamedTuple):
    """A paragraph."""

    text: str


class Bullets(NamedTuple):
    """A list."""

    items: Sequence[str]


class Table(NamedTuple):
    """A table below its caption; of its columns each is aligned left, `l`, or right, `r`."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    align: str  # a letter per column


class Picture(NamedTuple):
    """A figure beside the document, above its caption."""

    name: str  # the file's, without its suffix
    suffix: str  # that of the file, with its dot
    caption: str
    width: float = 1.0  # as a share of the page's


Block = Heading | Text | Bullets | Table | Picture


def to_markdown(blocks: Sequence[Block]) -> str:
    """GitHub's Markdown."""
    return "\n\n".join(_markdown_block(block) for block in blocks) + "\n"


def _markdown_block(block: Block) -> str:
    if isinstance(block, Heading):
        text = "#" * block.level + " " + markdown_text(block.text)
        return text + (block.below and f"\n\n{markdown_text(block.below)}")
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
    """Escape what Markdown would take for markup, outside code and mathematics."""
    return _by_part(
        text,
        lambda plain: re.sub(r"([\\*_<>\[\]#|$~])", r"\\\1", plain),
        lambda code: "`" + code.replace("|", "\\|") + "`",
        "$`{}`$".format,
    )


_PREAMBLE = r"""\documentclass[a4paper,11pt]{article}
\usepackage[T1]{fontenc}
\usepackage{lmodern}
\usepackage[margin=24mm]{geometry}
\usepackage{graphicx}
\usepackage{booktabs}
\usepackage{float}
\usepackage[font=small,labelfont=bf,skip=6pt]{caption}
\setlength{\parindent}{0pt}
\setlength{\parskip}{6pt}
\emergencystretch=4em
\renewcommand{\arraystretch}{1.1}
\newsavebox{\fitbox}
\newcommand{\fit}[1]{\sbox{\fitbox}{#1}\ifdim\wd\fitbox>\linewidth
\resizebox{\linewidth}{!}{\usebox{\fitbox}}\else\usebox{\fitbox}\fi}
\begin{document}
"""


def to_latex(blocks: Sequence[Block], picture_suffix: str) -> str:
    """A whole LaTeX document, for pdflatex with TeX Live's basic and recommended packages.

    Args:
        blocks: the document.
        picture_suffix: of the pictures' files: pdflatex reads `.png` and `.pdf`.
    """
    body = "\n\n".join(_latex_block(block, picture_suffix) for block in blocks)
    return f"{_PREAMBLE}\n{body}\n\n\\end{{document}}\n"


def _latex_block(block: Block, picture_suffix: str) -> str:
    if isinstance(block, Heading):
        text, below = latex_text(block.text), latex_text(block.below)
        if block.level == 1:
            return f"\\begin{{center}}\n{{\\Large\\bfseries {text}}}\n\n{below}\n\\end{{center}}"
        return f"\\{'sub' * (block.level - 2)}section*{{{text}}}"
    if isinstance(block, Text):
        return latex_text(block.text)
    if isinstance(block, Bullets):
        items = "\n".join(f"\\item {{}}{latex_text(item)}" for item in block.items)
        return f"\\begin{{itemize}}\n{items}\n\\end{{itemize}}"
    if isinstance(block, Picture):
        return (
            "\\begin{figure}[H]\n\\centering\n"
            f"\\includegraphics[width={block.width:.2f}\\linewidth,height=0.75\\textheight,"
            f"keepaspectratio]{{{block.name}{picture_suffix}}}\n"
            f"\\caption{{{latex_text(block.caption)}}}\n\\end{{figure}}"
        )
    starts = range(0, max(len(block.rows), 1), ROWS_PER_TABLE)
    return "\n\n".join(_latex_table(block, start) for start in starts)


def _latex_table(table: Table, start: int) -> str:
    caption = latex_text(table.caption) + (" (Continued.)" if start else "")
    header, *rows = (
        " & ".join(latex_text(cell) for cell in row) + " \\\\"
        for row in (table.header, *table.rows[start : start + ROWS_PER_TABLE])
    )
    lines = [
        "\\begin{table}[H]\n\\centering\\footnotesize",
        f"\\caption{{{caption}}}",
        f"\\fit{{\\begin{{tabular}}{{@{{}}{table.align}@{{}}}}\n\\toprule",
        header, "\\midrule", *rows,
        "\\bottomrule\n\\end{tabular}}\n\\end{table}",
    ]  # fmt: skip
    return "\n".join(lines)


_LATEX = {
    "\\": "\\textbackslash{}", "{": "\\{", "}": "\\}", "$": "\\$", "&": "\\&", "#": "\\#",
    "%": "\\%", "_": "\\_", "^": "\\textasciicircum{}", "~": "\\textasciitilde{}",
    "<": "\\textless{}", ">": "\\textgreater{}", "|": "\\textbar{}", '"': "\\textquotedbl{}",
    "-": "-{}", "[": "{[}", "]": "{]}", "`": "\\textasciigrave{}", "'": "{'}",
    "\N{MULTIPLICATION SIGN}": "$\\times$", "\N{PLUS-MINUS SIGN}": "$\\pm$",
}  # fmt: skip
_LETTERS = "ĂăĄąĆćČčĎďĐđĘęĚěĞğİĹĺĽľŁłŃńŇňŐőŒœŔŕŘřŚśŞşŠšŢţŤťŮůŰűŸŹźŻżŽž"  # pdflatex has these, too


def latex_text(text: str) -> str:
    """Escape everything that LaTeX would not print as it stands."""
    code = "\\texttt{{{}}}".format
    return _by_part(text, _escape_latex, lambda x: code(_escape_latex(x)), "${}$".format)


def _escape_latex(text: str) -> str:
    def escape(letter: str) -> str:
        if letter in _LATEX or letter in _LETTERS or (letter.isascii() and letter.isprintable()):
            return _LATEX.get(letter, letter)
        return letter if letter <= "\u00ff" and letter.isalpha() else " ?"[letter.isprintable()]

    # Long names and paths may be broken behind these.
    return re.sub(r"([_=]|/(?!\d))", r"\1\\allowbreak{}", "".join(map(escape, text)))


def _by_part(
    text: str, plain: Callable[[str], str], code: Callable[[str], str], math: Callable[[str], str]
) -> str:
    """Apply a function to what stands in backticks, one to mathematics, and one to the rest."""
    parts = re.split(r"(`[^`]*`|⟦[^⟧]*⟧)", text)
    parts[::2] = map(plain, parts[::2])
    parts[1::2] = (code(x[1:-1]) if x[0] == "`" else math(x[1:-1]) for x in parts[1::2])
    return "".join(parts)
