"""The report as LaTeX: what its blocks look like, and that pdflatex sets them well."""

import re
import shutil
import subprocess

import pytest
from matplotlib.figure import Figure

from datasets.voc import CLASS_NAMES
from tests.utils.report.test_sections import PICTURES, make_findings
from utils.report.contents import Code, Heading, Picture, Table
from utils.report.image_grid import save_figure
from utils.report.latex import to_latex
from utils.report.sections import build_report

NAMES = (
    *CLASS_NAMES[:18],
    "a_class_with_a_name_of_exactly_40_letters",
    "дерево",
    "100 % $x^2$ #&{~}\\",
)


def written(*blocks):
    text = to_latex("T", "", {"problem1": blocks})["problem1.tex"]
    return re.sub(r"^\\providecommand.*\n", "", text).strip()


@pytest.mark.parametrize(
    ("block", "text"),
    [
        (Heading(2, "Part_x"), r"\section*{Part\_x}"),
        (Heading(3, "50 % & $1 #2 {a}"), r"\subsection*{50 \% \& \$1 \#2 \{a\}}"),
        ("~ ^ \\ --x <<y", r"\textasciitilde{} \textasciicircum{} \textbackslash{} -{}-x <{}<y"),
        ("`a_b`: Übung", r"\texttt{a\_b}: Übung"),
        ("long/names_break.here", r"long/\allowbreak{}names\_\allowbreak{}break.\allowbreak{}here"),
        (
            "u\u0308ber дом",
            r"über \cyrillic{дом}{\fbox{\tiny 0434}\fbox{\tiny 043E}\fbox{\tiny 043C}}",
        ),
        ("人 ħ", r"\fbox{\tiny 4EBA} \fbox{\tiny 0127}"),
        (["one", "two"], "\\begin{itemize}\n\\item one\n\\item two\n\\end{itemize}"),
        (Code("a_b = {}"), "{\\footnotesize\n\\begin{verbatim}\na_b = {}\n\\end{verbatim}\n}"),
    ],
)
def test_text_prints_as_it_is(block, text):
    assert written(block) == text


def test_a_figure_stands_where_it_is_named_and_is_never_too_large():
    assert written(Picture("curves", "Of `a`.")).splitlines() == [
        r"See figure~\ref{fig:curves}.", "", r"\begin{figure}[H]", r"\centering",
        r"\includegraphics[width=\linewidth,height=0.8\textheight,keepaspectratio]{curves.pdf}",
        r"\caption{Of \texttt{a}.}\label{fig:curves}", r"\end{figure}",
    ]  # fmt: skip


def test_a_table_that_is_longer_than_a_page_goes_on():
    text = written(Table("Many.", ["", "n"], [["a", str(n)] for n in range(60)], "lr"))
    assert text.count(r"\begin{tabular}{lr}") == 2 and text.count(r" & n \\") == 2
    assert r"\caption{Many. (continued)}" in text and r"a & 59 \\" in text


def test_each_part_is_a_file_that_the_report_takes_in():
    files = to_latex("A & B", "Jane Doe", {"problem1": ["one"], "problem2": ["two"]})
    assert list(files) == ["report.tex", "problem1.tex", "problem2.tex"]
    assert "\\input{problem1}\n\\input{problem2}\n\\end{document}" in files["report.tex"]
    assert r"\title{A \& B}\author{Jane Doe}\date{}" in files["report.tex"]


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="needs TeX")
@pytest.mark.skipif(not shutil.which("pdftotext"), reason="needs poppler")
@pytest.mark.parametrize("number", [1, 2, 6])
def test_the_report_compiles_and_fits_its_pages(tmp_path, number):
    found = make_findings(tmp_path / "runs", number, NAMES)
    for name, height in zip(PICTURES, (3, 6, 9, 14, 8, 8, 3), strict=True):
        save_figure(Figure((8, height)), tmp_path / f"{name}.pdf", 50)
    for name, text in to_latex("T_1", "дом, 人", build_report(found)).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    command = ["pdflatex", "-no-shell-escape", "-halt-on-error", "-interaction=nonstopmode"]
    for _ in range(2):  # references are known to the second
        ended = subprocess.run([*command, "report"], cwd=tmp_path, capture_output=True)
        assert ended.returncode == 0, ended.stdout[-2000:]
    log = (tmp_path / "report.log").read_text("latin-1")
    assert all(float(points) < 10 for points in re.findall(r"Overfull \\.box \(([\d.]+)pt", log))
    assert "undefined" not in log
    subprocess.run(["pdftotext", "-layout", "report.pdf"], cwd=tmp_path, check=True)
    pages = (tmp_path / "report.txt").read_text("utf-8").split("\f")
    for figure in range(1, len(PICTURES) + 1):
        named, shown = (
            next(page for page, text in enumerate(pages) if f"{word} {figure}{mark}" in text)
            for word, mark in (("See figure", "."), ("Figure", ":"))
        )
        assert shown - named in (0, 1)
