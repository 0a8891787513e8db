r"""The blocks of `contents.py` as LaTeX, for pdflatex and the packages of a basic TeX Live.

Each problem is a file of its own that needs \usepackage{booktabs,float,graphicx} and T1 letters.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping

from utils.report.contents import Block, Code, Heading, Picture, Table

MAX_ROWS = 42  # of a table on a page
PREAMBLE = r"""\documentclass[a4paper]{article}
\usepackage[textwidth=165mm,textheight=245mm]{geometry}
\usepackage{booktabs,float,graphicx,textcomp}
\IfFileExists{t2aenc.def}{\usepackage[T2A,T1]{fontenc}}{\usepackage[T1]{fontenc}}
\IfFileExists{lmodern.sty}{\usepackage{lmodern}}{}
\usepackage[utf8]{inputenc}
\setlength{\parindent}{0pt}\setlength{\parskip}{6pt}\sloppy
"""
# Cyrillic letters where this TeX has them, and else what stands for unknown ones.
CYRILLIC = (
    r"\providecommand{\cyrillic}[2]{\ifcsname T@T2A\endcsname"
    r"{\fontencoding{T2A}\fontfamily{cmr}\selectfont #1}\else #2\fi}" "\n"
)  # fmt: skip
BREAKS = r"[/_.=:,]|[^\W_]{12}"  # a line may end behind them
SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
# The second group: letters that pdflatex has no sign for.
FOREIGN = "([\u0400-\u045f]+)|([^\0\n\x20-\x7e\xa1-\u017e\u2010-\u201e†‡•…€←↑→↓]|[ĦħĸĿŀŉŦŧ])"


def to_latex(title: str, below: str, parts: Mapping[str, Iterable[Block]]) -> dict[str, str]:
    """The files of a document: `report.tex`, and one for each part, by their names.

    `below` is a line under the title; `parts` has the blocks of each file, by its name without
    `.tex`.
    """
    inputs = "".join(f"\\input{{{name}}}\n" for name in parts)
    head = f"\\title{{{_escape(title)}}}\\author{{{_escape(below)}}}\\date{{}}\n"
    body = f"\\begin{{document}}\n\\maketitle\n{inputs}\\end{{document}}\n"
    files = {"report.tex": PREAMBLE + CYRILLIC + head + body}
    for name, blocks in parts.items():
        text = "\n\n".join(map(_write, blocks)) + "\n"
        files[f"{name}.tex"] = CYRILLIC * (r"\cyrillic" in text) + text
    return files


def _write(block: Block) -> str:
    match block:
        case Heading(level, text):
            return rf"\{'sub' * (level - 2)}section*{{{_escape(text)}}}"
        case Code(text):
            return f"{{\\footnotesize\n\\begin{{verbatim}}\n{text}\n\\end{{verbatim}}\n}}"
        case Picture(name, caption):
            size = r"width=\linewidth,height=0.8\textheight,keepaspectratio"
            return (
                rf"See figure~\ref{{fig:{name}}}." "\n\n"
                "\\begin{figure}[H]\n\\centering\n"
                rf"\includegraphics[{size}]{{{name}.pdf}}" "\n"
                rf"\caption{{{_escape(caption)}}}\label{{fig:{name}}}" "\n\\end{figure}"
            )  # fmt: skip
        case Table():
            pages = range(0, max(len(block.rows), 1), MAX_ROWS)
            return "\n\n".join(_table(block, start) for start in pages)
        case str():
            return _escape(block)
    items = "\n".join(rf"\item {_escape(item)}" for item in block)
    return f"\\begin{{itemize}}\n{items}\n\\end{{itemize}}"


def _table(table: Table, start: int) -> str:
    """A page of a table; one that is wider than the line is made smaller."""
    rows = table.rows[start : start + MAX_ROWS]
    head, *body = (" & ".join(map(_escape, row)) + r" \\" for row in (table.header, *rows))
    lines = [r"\toprule", head, r"\midrule", *body, r"\bottomrule"]
    caption = _escape(table.caption + " (continued)" * (start > 0))
    return "\n".join([
        r"\begin{table}[H]", r"\centering", rf"\caption{{{caption}}}\medskip",
        rf"\sbox0{{\begin{{tabular}}{{{table.align}}}", *lines, r"\end{tabular}}",
        r"\ifdim\wd0>\linewidth\resizebox{\linewidth}{!}{\usebox0}\else\usebox0\fi",
        r"\end{table}",
    ])  # fmt: skip


def _escape(text: str) -> str:
    """Text with its code in typewriter letters; lines may break within long names."""
    text = unicodedata.normalize("NFC", text)
    text = re.sub(r"[^\s`]{20,}", lambda name: re.sub(BREAKS, r"\g<0>" + "\0", name[0]), text)
    parts = list(map(_literal, re.split(r"`([^`]*)`", text)))
    parts[1::2] = (rf"\texttt{{{part}}}" for part in parts[1::2])
    return "".join(parts).replace("\0", r"\allowbreak{}")


def _literal(text: str) -> str:
    """Text that prints as it is: without commands, ligatures, and letters that would be errors."""
    text = re.sub(r"[\\~^_%$&#{}]", lambda sign: SPECIAL.get(sign[0], "\\" + sign[0]), text)
    text = re.sub(r"([-<>,'`])(?=\1)", r"\1{}", text)  # not a dash or a quotation mark
    return re.sub(FOREIGN, _spell, text)


def _spell(letters: re.Match) -> str:
    boxes = "".join(rf"\fbox{{\tiny {ord(letter):04X}}}" for letter in letters[0])
    return rf"\cyrillic{{{letters[0]}}}{{{boxes}}}" if letters[1] else boxes
