"""What a bar leaves in a log file."""

import time

from utils.common import progress as module
from utils.common.progress import progress, say


def test_bar_gives_all_items_and_writes_nothing_if_it_is_quick(capsys):
    assert list(progress(range(100), "count")) == list(range(100))
    assert capsys.readouterr().err == ""


def test_bar_in_a_log_file_is_a_short_line_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr(module, "LOG_SECONDS", 0.05)
    began = time.monotonic()
    for _ in progress(range(30), "outer"):
        for _ in progress(range(2), "inner", leave=False):
            pass
        time.sleep(0.01)
    most = (time.monotonic() - began) / 0.05 + 2
    text = capsys.readouterr().err
    lines = [line.strip("\r") for line in text.splitlines() if line.strip()]
    assert 2 <= len(lines) <= most
    assert all(line.startswith("outer: ") and len(line) < 60 for line in lines)
    assert "\x1b" not in text  # no moves of the cursor


def test_what_is_said_in_a_log_file_is_the_text_alone(capsys):
    with progress(None, "bar", 10) as bar:
        bar.update(3)
        say("found")
    assert capsys.readouterr().out == "found\n"
