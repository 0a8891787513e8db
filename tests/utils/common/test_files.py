"""Files are written whole or not at all."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from utils.common.checkpoint_files import read_file, save_checkpoint
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


def test_file_is_synced_where_only_files_open_for_writing_can_be(tmp_path, monkeypatch):
    synced = []

    def windows_fsync(descriptor):
        os.write(descriptor, b"")  # EBADF where it was opened for reading, as Windows says
        synced.append(descriptor)

    monkeypatch.setattr(os, "fsync", windows_fsync)
    write_json(tmp_path / "args.json", {"lr": 0.1})
    save_checkpoint(tmp_path / "last.pth", {"cur_itrs": torch.tensor(3)})
    assert read_json(tmp_path / "args.json") == {"lr": 0.1}
    assert read_file(tmp_path / "last.pth") == {"cur_itrs": torch.tensor(3)} and len(synced) == 2


def test_many_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "a.json"

    def write(number):
        write_json(path, {"number": number, "text": "x" * 10_000})

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(write, range(200))) == [None] * 200
    assert read_json(path)["text"] == "x" * 10_000 and list(tmp_path.iterdir()) == [path]


def test_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/a\.json: cannot be written"):
        write_json(tmp_path / "file" / "a.json", {})


def test_json_object_comes_back_also_with_the_byte_order_mark_of_an_editor(tmp_path):
    path, value = tmp_path / "a.json", {"name": "Zürich", "value": [1, None]}
    write_json(path, value)
    assert read_json(path) == value
    path.write_text(path.read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert read_json(path) == value


@pytest.mark.parametrize("text", ["[1]", "3", "{", ""])
def test_what_is_no_json_object_is_named(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"a\.json: "):
        read_json(tmp_path / "a.json")
