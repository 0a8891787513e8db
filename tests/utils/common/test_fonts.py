"""Names in any script are drawn in a font that has their letters."""

from pathlib import Path

import matplotlib
import pytest
from PIL import ImageFont

from tests.conftest import run_python
from utils.common import fonts

BUNDLED = Path(matplotlib.get_data_path()) / "fonts/ttf"
OTHER, BOXES = BUNDLED / "STIXGeneral.ttf", BUNDLED / "LastResortHE-Regular.ttf"


@pytest.mark.parametrize("name", ["road", "небо", "δρόμος", "Straße", "đường"])
def test_letters_of_many_scripts_are_in_the_font(name):
    """A font draws one and the same box for each letter that it has not."""
    (path,) = fonts.find_fonts([name])
    font = ImageFont.truetype(str(path), 20)
    box = bytes(font.getmask("\ue123"))
    assert path.name == "DejaVuSans.ttf"
    assert all(bytes(font.getmask(letter)) != box for letter in name)


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """A computer with a broken font, one of boxes for every letter, and one that has an Ⓐ."""
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    files = [str(tmp_path / "broken.ttf"), str(BOXES), str(OTHER)]
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda: files)
    monkeypatch.setattr(fonts, "say_once", print)
    fonts._find_fonts.cache_clear()
    yield
    fonts._find_fonts.cache_clear()


def test_an_installed_font_helps_out(installed, capsys):
    found = fonts.find_fonts(["cat", "Ⓐ or b", "небо"])
    assert found == [fonts.dejavu(), OTHER] and capsys.readouterr().out == ""
    best = [fonts.best_font(names) for names in (["cat"], ["Ⓐ or b", "cat"], ["небо"])]
    assert best == [fonts.dejavu(), OTHER, fonts.dejavu()]


def test_letters_that_no_font_has_are_said_once_in_one_line(installed, capsys):
    for _ in range(2):
        assert fonts.find_fonts(["Ⓐ天", "空 cat"]) == [fonts.dejavu(), OTHER]  # has one of three
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("note: no font here has 天 空: boxes are drawn")


def test_a_notebooks_backend_does_not_stop_matplotlib():
    code = "from utils.common.fonts import find_fonts; print(find_fonts(['небо'])[0].name)"
    ended = run_python(code, MPLBACKEND="module://matplotlib_inline.backend_inline")
    assert ended.stdout.strip() == "DejaVuSans.ttf", ended.stderr
