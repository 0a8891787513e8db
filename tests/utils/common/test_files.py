"""Files are written whole or not at all."""

import pytest

from utils.common.errors import UserError
from utils.common.files import read_json, write_atomically, write_json


def test_file_is_replaced_at_the_end_alone(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with write_atomically(path) as partial:
        partial.write_text("one")
        assert not path.exists() and partial.parent == path.parent
    assert path.read_text() == "one" and list(path.parent.iterdir()) == [path]


def test_error_on_the_way_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError):
        with write_atomically(path) as partial:
            partial.write_text("half")
            raise ZeroDivisionError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/a\.json: cannot be written"):
        write_json(tmp_path / "file" / "a.json", {})


def test_json_object_comes_back(tmp_path):
    write_json(tmp_path / "a.json", {"name": "Zürich", "value": [1, None]})
    assert read_json(tmp_path / "a.json") == {"name": "Zürich", "value": [1, None]}


def test_byte_order_mark_of_an_editor_is_no_fault(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1}', encoding="utf-8-sig")
    assert read_json(tmp_path / "a.json") == {"a": 1}


@pytest.mark.parametrize("text", ["[1]", "3", "{", ""])
def test_what_is_no_json_object_is_named(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"a\.json: "):
        read_json(tmp_path / "a.json")
