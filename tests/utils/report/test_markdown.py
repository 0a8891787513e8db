"""What the report's blocks look like as Markdown."""

import pytest

from utils.report.contents import Code, Heading, Picture, Table
from utils.report.markdown import to_markdown


@pytest.mark.parametrize(
    ("block", "text"),
    [
        (Heading(2, "Part_x"), "## Part\\_x"),
        ("run `main.py --a_b` in *R1_x*", "run `main.py --a_b` in \\*R1\\_x\\*"),  # but not in code
        (["one", "[two]"], "- one\n- \\[two\\]"),
        (Code("a = b_c"), "```python\na = b_c\n```"),
        (
            Table("A table.", ["", "mIoU"], [["`a|b`", "66.1"], ["c_d", "7"]], "lr"),
            "*A table.*\n\n|  | mIoU |\n| --- | ---: |\n| `a\\|b` | 66.1 |\n| c\\_d | 7 |",
        ),
        (
            Picture("curves", "Curves of `a`."),
            "![curves](curves.png)\n\n*Curves of `a`.*",
        ),
    ],
)
def test_blocks_are_markdown(block, text):
    assert to_markdown(["before", block]) == f"before\n\n{text}\n"
