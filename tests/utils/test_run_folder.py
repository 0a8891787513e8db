"""Who may enter a run's folder, and what is read of a log that somebody touched."""

import sqlite3
from unittest.mock import Mock

import pytest

from utils.common.errors import UserError
from utils.run_folder import RunFolder, read_log


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run")


def fill(folder):
    folder.path.mkdir()
    names = ("args.json", "log.jsonl", "best.pth", "last.pth", "scores.json", "scores_test.json")
    (folder.path / "predictions_test").mkdir()
    for name in (*names, "predictions_test/a.png", ".last.pth.77.partial", "notes.txt"):
        (folder.path / name).write_text("")


def names(folder):
    return sorted(path.name for path in folder.path.iterdir() if path.name != ".lock")


@pytest.mark.parametrize("name", ["args.json", "log.jsonl", "best.pth", "last.pth"])
def test_folder_that_holds_a_run_is_entered_on_demand_alone(folder, name):
    folder.check(resume=False, overwrite=False)  # nothing there
    folder.path.mkdir()
    (folder.path / name).write_text("")
    with pytest.raises(UserError, match="--resume .*--overwrite"):
        folder.check(resume=False, overwrite=False)
    folder.check(resume=False, overwrite=True)


def test_resume_needs_a_checkpoint(folder):
    with pytest.raises(UserError, match=r"--resume: .*last\.pth is not there"):
        folder.check(resume=True, overwrite=False)


def test_overwrite_removes_the_run_and_its_scores_and_nothing_else(folder):
    fill(folder)
    with folder.held(resume=False, overwrite=True):
        assert names(folder) == ["notes.txt", "predictions_test"]
        assert not list((folder.path / "predictions_test").iterdir())


def test_resume_removes_what_a_kill_left_half_written_alone(folder):
    fill(folder)
    before = names(folder)
    with folder.held(resume=True, overwrite=False):
        assert names(folder) == sorted(set(before) - {".last.pth.77.partial"})


def test_folder_is_held_by_one_run_at_a_time(folder):
    other = RunFolder(folder.path)
    with folder.held(resume=False, overwrite=False):
        (folder.path / "last.pth").write_text("")
        for resume in (True, False):
            with pytest.raises(UserError, match="another process"):
                with other.held(resume, overwrite=not resume):
                    pass
        assert folder.last.exists()
    with other.held(resume=True, overwrite=False):
        pass


def test_run_that_came_and_went_since_the_check_is_not_removed(folder):
    folder.check(resume=False, overwrite=False)
    fill(folder)
    with pytest.raises(UserError, match="holds a run"):
        with folder.held(resume=False, overwrite=False):
            pass
    assert folder.best.exists()


def test_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(UserError, match=r"runs/run: cannot be written .*--runs_dir"):
        with RunFolder(tmp_path / "runs" / "run").held(False, False):
            pass


def test_folder_without_locks_is_said(folder, monkeypatch, capsys):
    connection = Mock(in_transaction=False)
    connection.execute.side_effect = sqlite3.OperationalError("disk I/O error")
    monkeypatch.setattr("utils.common.locks.sqlite3.connect", lambda *_, **__: connection)
    with folder.held(False, False):
        pass
    assert "no locks there (disk I/O error)" in capsys.readouterr().out


@pytest.mark.parametrize("line", ['{"miou": 0.5}', '{"iteration": null}', "3", "[]"])
def test_record_without_an_iteration_is_named_with_its_line(tmp_path, line):
    (tmp_path / "log.jsonl").write_text('{"iteration": 5}\n' + line + "\n")
    with pytest.raises(UserError, match=r"log\.jsonl: line 2 .* iteration"):
        read_log(tmp_path)


def test_records_after_the_checkpoint_are_dropped(folder):
    folder.path.mkdir()
    for number in (3, 6, 9):
        folder.append_log({"iteration": number, "class_iou": {}})
    folder.drop_log_after(6)
    folder.append_log({"iteration": 8, "class_iou": {}})
    assert [record["iteration"] for record in read_log(folder.path)] == [3, 6, 8]
