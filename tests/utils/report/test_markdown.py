"""What the report's blocks look like as Markdown."""

from utils.report.markdown import bullets, heading, paragraph, picture, table


def test_text_is_escaped_outside_code():
    assert heading(2, "Part_x") == "## Part\\_x"
    assert paragraph("run `main.py --a_b` in *R1_x*") == "run `main.py --a_b` in \\*R1\\_x\\*"
    assert bullets(["one", "[two]"]) == "- one\n- \\[two\\]"


def test_table_is_aligned_and_keeps_its_cells_apart():
    assert table("A table.", ["", "mIoU"], [["`a|b`", "66.1"], ["c_d", "7"]], "lr") == (
        "*A table.*\n\n|  | mIoU |\n| ------ | ----: |\n| `a\\|b` | 66.1 |\n| c\\_d | 7 |"
    )


def test_picture_stands_above_its_caption():
    assert picture("curves.png", "Curves of `a`.") == "![curves](curves.png)\n\n*Curves of `a`.*"
