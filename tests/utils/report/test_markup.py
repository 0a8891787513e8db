"""The same document as Markdown and as LaTeX."""

import shutil
import subprocess

import pytest

from utils.report.markup import Bullets, Heading, Picture, Table, Text, to_latex, to_markdown

NASTY = '50 % of $x_1^2$ {a} & b #1 ~c \\d <e> |f| "g" [h] *i* -- r\u00f6ntgen \u4e2d'
BLOCKS = [
    Heading(1, "Title", "Jane Doe, May 2026"),
    Heading(2, "Part"),
    Text("run `main.py --loss ce` in R1_x"),
    Bullets(["one", "[two]"]),
    Table("A table.", ["", "mIoU"], [["`a|b`", "66.1"], ["c_d", "7"]], "lr"),
]


def test_markdown_is_escaped_outside_code():
    assert to_markdown(BLOCKS) == (
        "# Title\n\nJane Doe, May 2026\n\n## Part\n\n"
        "run `main.py --loss ce` in R1\\_x\n\n- one\n- \\[two\\]\n\n"
        "*A table.*\n\n|  | mIoU |\n| --- | ---: |\n| `a\\|b` | 66.1 |\n| c\\_d | 7 |\n"
    )
    picture = to_markdown([Picture("curves", ".png", "Curves of `a`.")])
    assert picture == "![curves](curves.png)\n\n*Curves of `a`.*\n"


def test_latex_is_escaped():
    text = to_latex([Text("50 % of a_b & `c_d --e`")], ".png")
    assert "50 \\% of a\\_\\allowbreak{}b \\& \\texttt{c\\_\\allowbreak{}d -{}-{}e}" in text
    assert "d \\$5" in to_latex([Text("d $5")], ".png")
    assert "?" in to_latex([Text("\u4e2d")], ".png")  # pdflatex has no letter for it
    assert "\u00f6 \u0141" in to_latex([Text("\u00f6 \u0141")], ".png")


def test_mathematics_is_left_to_latex_and_to_github():
    text = Text("`a_b` (1 - p)_x, \u27e6(1 - p)^\\gamma\u27e7")
    assert to_markdown([text]) == "`a_b` (1 - p)\\_x, $`(1 - p)^\\gamma`$\n"
    assert "{}x, $(1 - p)^\\gamma$" in to_latex([text], ".png")


def test_long_tables_are_split_into_pages_for_latex():
    table = Table("C", ["a"], [[str(number)] for number in range(81)], "l")
    text = to_latex([table], ".png")
    assert text.count("\\begin{tabular}") == 3 and text.count("(Continued.)") == 2
    assert [text.count(f"\n{number} \\\\") for number in range(81)] == [1] * 81
    assert "longtable" not in text and "[H]" in text


def test_latex_takes_pictures_in_the_format_it_reads():
    assert "]{curves.pdf}" in to_latex([Picture("curves", ".svg", "C", 0.5)], ".pdf")
    assert "0.50\\linewidth" in to_latex([Picture("curves", ".svg", "C", 0.5)], ".pdf")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_compiles_whatever_names_hold(tmp_path):
    blocks = [
        *BLOCKS, Heading(2, NASTY), Text(NASTY), Bullets([NASTY, f"`{NASTY}`"]),
        Table(NASTY, ["a", NASTY], [[NASTY, f"`{NASTY}`"]] * 80, "ll"),
    ]  # fmt: skip
    (tmp_path / "report.tex").write_text(to_latex(blocks, ".png"), encoding="utf-8")
    ended = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "report.tex"],
        cwd=tmp_path, capture_output=True, timeout=60,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout[-1500:]
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
