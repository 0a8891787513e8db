"""Downloads against mirrors on this machine, whose faults each test names."""

import hashlib
import http.server
import re
import shutil
import threading
from types import SimpleNamespace

import pytest
from tqdm import tqdm

from utils.common import download
from utils.common.download import DownloadError, download_file
from utils.common.errors import UserError

DATA = bytes(range(251)) * 1000  # 251,000 bytes
MD5 = hashlib.md5(DATA).hexdigest()


class Mirror(http.server.BaseHTTPRequestHandler):
    """Serves `DATA` with the faults that `server.faults` names; notes each Range."""

    def do_GET(self):  # noqa: N802
        faults = self.server.faults
        data = faults.get("data", DATA)
        self.server.ranges.append(self.headers["Range"])
        if "status" in faults:
            return self.send_error(faults["status"])
        if "silent" in faults:
            return self.server.released.wait(10)
        start = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1])
        start = 0 if "no_ranges" in faults else start
        self.send_response(206 if start else 200)
        if "no_length" not in faults:
            self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start : faults.get("cut")])
        if "stalls" in faults:
            self.wfile.flush()
            self.server.released.wait(10)

    def log_message(self, *args):
        pass


@pytest.fixture
def serve(monkeypatch):
    """`serve(faults)` starts a mirror and returns its server, with `.url`."""
    monkeypatch.setattr(download, "TIMEOUT", 0.5)
    servers = []

    def start(faults):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
        server.faults, server.ranges, server.released = faults, [], threading.Event()
        server.url = f"http://127.0.0.1:{server.server_port}/weights.pth"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.released.set()
        server.shutdown()
        server.server_close()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pth"


@pytest.fixture
def part(path):
    return path.with_name("weights.pth.part")


def fetch(path, *servers, md5=MD5):
    download_file([server.url for server in servers], path, len(DATA), md5)


def names(folder):
    """All files but the empty one that the lock leaves."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


# What a mirror without the file, or without its rest, does: the part is left to the next one.
NOT_THERE = [
    ({"data": b"<html>moved</html>", "no_ranges": True}, "has another file"),
    ({"data": DATA + b"x"}, "has another file"),
    ({"no_length": True}, "has another file"),
    ({"status": 404}, "HTTP Error 404"),
    ({"silent": True}, "timed out"),
]
CUT, STALL = {"cut": 70_001}, {"cut": 70_001, "stalls": True}
WRONG = {"data": b"x" * len(DATA)}


@pytest.mark.parametrize(
    ("there", "mirrors", "asked"),
    [
        # What is there of the file, the mirrors, and from where each of them is asked for it.
        (b"", [{}, {}], [[0], []]),
        (DATA[:100_001], [{}], [[100_001]]),
        (DATA, [{}], [[]]),
        (b"?" * 1000, [{"no_ranges": True}], [[1000]]),  # which begins again
        (b"", [CUT, {}], [[0], [70_001]]),
        (b"", [STALL, {}], [[0], [70_001]]),
        (b"", [WRONG, {}], [[0], [0]]),
        (b"?" * 1000, [{}, {}], [[1000], [0]]),
        (DATA + b"x", [{}, {}], [[], [0]]),
        *((DATA[:1000], [faults, {}], [[1000], [1000]]) for faults, _ in NOT_THERE),
    ],
)
def test_file_is_completed_from_one_mirror_after_the_other(
    serve, path, part, there, mirrors, asked
):
    if there:
        part.write_bytes(there)
    servers = [serve(faults) for faults in mirrors]
    fetch(path, *servers)
    assert path.read_bytes() == DATA and names(path.parent) == ["weights.pth"]
    starts = [[f"bytes={number}-" for number in numbers] for numbers in asked]
    assert [server.ranges for server in servers] == starts


@pytest.mark.parametrize(
    ("faults", "reason", "left"),
    [
        *((faults, reason, DATA[:1000]) for faults, reason in NOT_THERE),
        (CUT, "the connection was cut", DATA[:70_001]),
        (STALL, "timed out", DATA[:70_001]),
        (WRONG, "sent another file", None),
    ],
)
def test_failure_names_file_mirror_and_reason_and_what_is_kept(
    serve, path, part, faults, reason, left
):
    part.write_bytes(DATA[:1000])
    server = serve(faults)
    with pytest.raises(DownloadError) as error:
        fetch(path, server)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    assert f"{server.url}: " in message and reason in message
    assert (f"0.1 MB are in {part}" in message) == (left is not None and len(left) > 50_000)
    assert (part.read_bytes() if part.exists() else None) == left and not path.exists()


def test_url_size_and_place_are_said(serve, path, capsys):
    server = serve({})
    fetch(path, server)
    assert f"{server.url} to {path}.part (0.0 of 0.3 MB)" in capsys.readouterr().out


def test_interrupt_keeps_the_part_for_the_next_run(serve, path, part, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    server = serve({})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tqdm, "update", interrupt)
        fetch(path, server)
    done = part.read_bytes()
    assert 0 < len(done) < len(DATA) and done == DATA[: len(done)] and not path.exists()
    fetch(path, server)
    assert path.read_bytes() == DATA and server.ranges == ["bytes=0-", f"bytes={len(done)}-"]


def test_file_already_there_is_checked_and_not_downloaded(serve, path):
    server = serve({})
    path.write_bytes(DATA)
    fetch(path, server)
    for wrong, md5 in ((DATA[:-1] + b"x", MD5), (DATA[:-1], None)):
        path.write_bytes(wrong)
        with pytest.raises(UserError, match=re.escape(f"{path}: is damaged or another file")):
            fetch(path, server, md5=md5)
        assert path.read_bytes() == wrong
    assert server.ranges == []


def test_download_asks_for_room_for_what_is_missing(serve, path, part, monkeypatch):
    part.write_bytes(DATA[:1000])
    server, disk = serve({}), SimpleNamespace(free=len(DATA) - 1001)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk)
    with pytest.raises(UserError, match=re.escape(f"{path.parent}: 0.0 GB are needed, but only")):
        fetch(path, server)
    assert server.ranges == []
    disk.free += 1
    fetch(path, server)
    assert path.read_bytes() == DATA


def test_part_that_cannot_be_written_is_a_user_error_that_names_it(serve, path, part):
    part.mkdir()
    with pytest.raises(UserError, match=re.escape(f"{part}: cannot be used (Is a directory)")):
        fetch(path, serve({}))
