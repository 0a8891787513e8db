import hashlib
import http.server
import io
import re
import shutil
import socket
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from tqdm import tqdm

from datasets import voc
from datasets.voc import VOC2012_NAME, VOC2012_URLS, install_voc2012
from utils.common import download
from utils.common.download import DownloadError, download_file
from utils.common.errors import UserError

DATA = bytes(range(251)) * 1000  # 251,000 bytes
DATA_MD5 = hashlib.md5(DATA).hexdigest()


class Mirror(http.server.BaseHTTPRequestHandler):
    """Serves `server.data` with the faults that `server.faults` names; notes each Range."""

    def do_GET(self):  # noqa: N802
        faults, data = self.server.faults, self.server.data
        self.server.ranges.append(self.headers.get("Range"))
        if faults.get("silent"):
            self.server.released.wait(10)
            return
        if "status" in faults:
            return self.send_error(faults["status"])
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked and faults.get("ranges") != "ignored" else 0
        self.send_response(206 if start else 200)
        if start:
            first, total = start - faults.get("shift", 0), faults.get("total", len(data))
            self.send_header("Content-Range", f"bytes {first}-{total - 1}/{total}")
        if not faults.get("no_length"):
            self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        stop = start + faults["cut"] if faults.get("cuts", 0) > 0 else len(data)
        faults["cuts"] = faults.get("cuts", 0) - 1
        self.server.sent += len(data[start:stop])
        self.wfile.write(data[start:stop])
        if faults.get("stalls") and stop < len(data):
            self.wfile.flush()
            self.server.released.wait(10)

    def log_message(self, *args):
        pass


@pytest.fixture
def serve():
    """`serve(data, **faults)` starts a mirror and returns its server, with `.url`."""
    servers = []

    def start(data=DATA, **faults):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
        server.data, server.faults, server.ranges, server.sent = data, faults, [], 0
        server.released = threading.Event()
        server.url = f"http://127.0.0.1:{server.server_port}/{VOC2012_NAME}"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.released.set()
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.5)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pth"


@pytest.fixture
def part(path):
    return path.with_name("weights.pth.part")


def fetch(path, *servers, md5=DATA_MD5):
    download_file([server.url for server in servers], path, len(DATA), md5)


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt


def names(folder):
    """All files but the empty ones that locks leave."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return sorted(str(path.relative_to(folder)) for path in files if path.suffix != ".lock")


# download_file()


def test_download_leaves_the_file_and_nothing_else(serve, path, tmp_path, capsys):
    server = serve()
    fetch(path, server)
    assert path.read_bytes() == DATA
    assert names(tmp_path) == ["weights.pth"]
    said = capsys.readouterr().out
    assert server.url in said and "0.3 MB" in said and str(path) in said


def test_download_continues_a_part_and_asks_for_the_rest_alone(serve, path, part):
    part.write_bytes(DATA[:100_001])
    server = serve()
    fetch(path, server)
    assert path.read_bytes() == DATA
    assert server.ranges == ["bytes=100001-"] and server.sent == len(DATA) - 100_001


def test_complete_part_needs_no_mirror_and_a_too_long_one_is_dropped(serve, path, part):
    part.write_bytes(DATA)
    download_file(["http://127.0.0.1:1/"], path, len(DATA), DATA_MD5)
    assert path.read_bytes() == DATA and not part.exists()
    path.unlink()
    part.write_bytes(DATA + b"x")
    server = serve()
    fetch(path, server)
    assert path.read_bytes() == DATA and server.ranges == [None]


def test_mirror_that_always_cuts_is_used_while_the_file_grows(serve, path):
    server, spare = serve(cut=50_000, cuts=99), serve()
    fetch(path, server, spare)
    assert path.read_bytes() == DATA and spare.ranges == []
    assert server.ranges == [None] + [f"bytes={n}0000-" for n in (5, 10, 15, 20, 25)]


def test_cutting_mirror_without_ranges_is_given_up_and_the_next_goes_on(serve, path, part):
    server, spare = serve(cut=50_000, cuts=99, ranges="ignored"), serve()
    with pytest.raises(DownloadError, match=re.escape(f"0.1 MB are in {part}")):
        fetch(path, server)
    assert part.read_bytes() == DATA[:50_000]
    fetch(path, server, spare)
    assert path.read_bytes() == DATA
    assert len(server.ranges) == 3 and spare.ranges == ["bytes=50000-"]


def test_mirror_that_ignores_ranges_starts_again(serve, path, part):
    part.write_bytes(b"?" * 1000)  # would stay in the file if it were continued
    fetch(path, serve(ranges="ignored"), md5=None)
    assert path.read_bytes() == DATA


@pytest.mark.parametrize(
    "faults",
    [
        {"data": b"<html>moved</html>", "ranges": "ignored"},
        {"ranges": "ignored", "no_length": True},
        {"total": len(DATA) + 1},
        {"shift": 1},
        {"status": 404},
        {"status": 416},
    ],
)
def test_mirror_without_the_file_or_its_rest_leaves_the_part_to_the_next(serve, path, part, faults):
    part.write_bytes(DATA[:1000])
    wrong, spare = serve(**faults), serve()
    with pytest.raises(DownloadError) as error:
        fetch(path, wrong)
    message, reason = str(error.value), f"HTTP Error {faults.get('status')}"
    reason = reason if "status" in faults else "sends another file"
    assert message.startswith(f"{path}: ") and "\n" not in message
    assert f"127.0.0.1:{wrong.server_port}: {reason}" in message
    assert part.read_bytes() == DATA[:1000]
    fetch(path, wrong, spare)
    assert path.read_bytes() == DATA and spare.ranges == ["bytes=1000-"]


def test_wrong_bytes_of_the_right_size_are_deleted_and_the_next_mirror_tried(serve, path, tmp_path):
    wrong, spare = serve(b"x" * len(DATA)), serve()
    with pytest.raises(DownloadError, match=f"its MD5 is not {DATA_MD5}"):
        fetch(path, wrong)
    assert names(tmp_path) == []
    fetch(path, wrong, spare)
    assert path.read_bytes() == DATA and spare.ranges == [None]


def test_damaged_part_is_downloaded_anew_from_the_same_mirror(serve, path, part):
    part.write_bytes(b"x" * 1000)
    server = serve()
    fetch(path, server)
    assert path.read_bytes() == DATA and server.ranges == ["bytes=1000-", None]


def test_mirror_that_accepts_and_never_answers_is_left_after_the_timeout(serve, path):
    silent, spare = serve(silent=True), serve()
    start = time.monotonic()
    fetch(path, silent, spare)
    assert 0.5 <= time.monotonic() - start < 3
    assert path.read_bytes() == DATA


def test_stalled_transfer_loses_nothing_and_goes_on(serve, path):
    server = serve(cut=70_001, cuts=1, stalls=True)
    start = time.monotonic()
    fetch(path, server)
    assert 0.5 <= time.monotonic() - start < 5
    assert path.read_bytes() == DATA and server.ranges == [None, "bytes=70001-"]


def test_interrupt_keeps_the_part_for_the_next_run(serve, path, part, tmp_path, monkeypatch):
    server = serve()

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tqdm, "update", interrupt)
        fetch(path, server)
    assert names(tmp_path) == ["weights.pth.part"]
    done = part.read_bytes()
    assert 0 < len(done) < len(DATA) and done == DATA[: len(done)]
    fetch(path, server)
    assert path.read_bytes() == DATA and server.ranges == [None, f"bytes={len(done)}-"]


def test_file_already_there_is_checked_and_not_downloaded(serve, path):
    server = serve()
    path.write_bytes(DATA)
    fetch(path, server)
    path.write_bytes(DATA[:-1] + b"x")
    with pytest.raises(UserError, match=re.escape(f"{path}: its MD5 is")):
        fetch(path, server)
    path.write_bytes(DATA[:-1])
    with pytest.raises(UserError, match="its size in bytes is 250,999 where 251,000"):
        fetch(path, server, md5=None)
    assert server.ranges == [] and path.read_bytes() == DATA[:-1]


def test_download_asks_for_room_for_what_is_missing(serve, path, part, monkeypatch):
    part.write_bytes(DATA[:1000])
    server = serve()
    free = len(DATA) - 1000 - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    message = f"{path.parent}: 0.0 GB are needed, but only 0.0 GB are free"
    with pytest.raises(UserError, match=re.escape(message)):
        fetch(path, server)
    assert server.ranges == []
    free += 1
    fetch(path, server)
    assert path.read_bytes() == DATA


def test_part_that_cannot_be_written_is_a_user_error_that_names_it(serve, path, part):
    part.mkdir()
    with pytest.raises(UserError, match=re.escape(f"{part}: cannot be used (Is a directory)")):
        fetch(path, serve())


# install_voc2012()


def make_tar(path, files):
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


FILES = {
    "JPEGImages/2007_000032.jpg": b"image" * 1000,
    "SegmentationClass/2007_000032.png": b"target",
    "SegmentationObject/2007_000032.png": b"object",
    "ImageSets/Segmentation/train.txt": b"2007_000032\n",
    "Annotations/2007_000032.xml": b"<xml/>",
}


@pytest.fixture
def tar(tmp_path, monkeypatch):
    """A small archive that counts as the true one, and no mirrors."""
    files = {f"VOCdevkit/VOC2012/{name}": data for name, data in FILES.items()}
    path = make_tar(tmp_path / "own.tar", files)
    monkeypatch.setattr(voc, "VOC2012_URLS", ())
    monkeypatch.setattr(voc, "VOC2012_SIZE", path.stat().st_size)
    monkeypatch.setattr(voc, "VOC2012_MD5", hashlib.md5(path.read_bytes()).hexdigest())
    return path


@pytest.fixture
def root(tmp_path):
    return tmp_path / "data"


def assert_installed(root, more=()):
    expected = [f"VOCdevkit/VOC2012/{name}" for name in FILES]
    assert names(root) == sorted([*expected, *more])
    for name, data in FILES.items():
        assert (root / "VOCdevkit/VOC2012" / name).read_bytes() == data


def test_voc_is_downloaded_whole_and_the_archive_removed(serve, tar, root, monkeypatch):
    other = root / "VOCdevkit/VOC2007/readme"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"2007")
    server = serve(tar.read_bytes())
    monkeypatch.setattr(voc, "VOC2012_URLS", ["http://127.0.0.1:1/x", server.url])
    install_voc2012(root)
    assert_installed(root, ["VOCdevkit/VOC2007/readme"])
    assert not (root / ".voc2012-partial").exists()
    install_voc2012(root)
    assert len(server.ranges) == 1


def test_archive_on_the_disk_is_extracted_and_kept(tar, root):
    install_voc2012(root, str(tar))
    assert_installed(root)
    assert tar.exists()
    shutil.rmtree(root)
    root.mkdir()
    shutil.copy(tar, root / VOC2012_NAME)  # one found in root is used as well
    install_voc2012(root)
    assert_installed(root, [VOC2012_NAME])


def test_wrong_archive_is_an_error_before_anything_is_written(tar, root):
    right, data = voc.VOC2012_MD5, tar.read_bytes()
    wrong = data[:-1] + b"x"
    tar.write_bytes(wrong)
    both = f"its MD5 is {hashlib.md5(wrong).hexdigest()} where {right} is expected"
    with pytest.raises(UserError, match=re.escape(f"{tar}: {both}")):
        install_voc2012(root, tar)
    tar.write_bytes(data[:-1])
    with pytest.raises(UserError, match=re.escape(f"{tar}: its size in bytes is ")):
        install_voc2012(root, tar)
    tar.unlink()
    with pytest.raises(UserError, match=re.escape(f"{tar}: no such file")):
        install_voc2012(root, tar)
    assert not root.exists()


def test_incomplete_voc_is_not_touched(tar, root):
    (root / "VOCdevkit/VOC2012/JPEGImages").mkdir(parents=True)
    with pytest.raises(UserError, match=r"VOC2012: is there without SegmentationClass"):
        install_voc2012(root, tar)
    assert names(root) == []


@pytest.mark.parametrize("download_it", [True, False])
def test_voc_needs_room_for_archive_and_files(serve, tar, root, monkeypatch, download_it):
    size = tar.stat().st_size
    need = size * (205 if download_it else 105) // 100
    server = serve(tar.read_bytes())
    monkeypatch.setattr(voc, "VOC2012_URLS", [server.url])
    arguments = (root, None if download_it else tar)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=need - 1))
    with pytest.raises(UserError, match=re.escape(f"{root}: 0.0 GB are needed")):
        install_voc2012(*arguments)
    assert server.ranges == [] and names(root) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=need))
    install_voc2012(*arguments)
    assert_installed(root)


def test_root_that_is_a_file_is_a_user_error(tar, root):
    root.write_bytes(b"")
    with pytest.raises(UserError, match=re.escape(f"{root}: cannot be used")):
        install_voc2012(root, tar)


def test_without_network_one_line_names_the_ways_to_get_voc(root, monkeypatch):
    def fail(*args, **kwargs):
        raise socket.gaierror("no name server")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5_000_000_000))
    with pytest.raises(UserError) as error:
        install_voc2012(root)
    message = str(error.value)
    assert "\n" not in message and "VOC 2012 is missing" in message and str(root) in message
    assert all(flag in message for flag in ("--voc_archive", "--data_root", "--dataset shapes"))
    assert message.count("no name server") == len(VOC2012_URLS) > 1
    assert names(root) == []


# kills, and two at once


def test_kill_during_extraction_leaves_no_voc_and_the_next_run_starts_over(tar, root, monkeypatch):
    extract, calls = tarfile.TarFile._extract_one, []

    def dying(*args, **kwargs):
        extract(*args, **kwargs)
        calls.append(1)
        if len(calls) == 4:  # all that segmentation needs is there
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tarfile.TarFile, "_extract_one", dying)
        patch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)  # a kill tidies nothing
        install_voc2012(root, tar)
    left = root / ".voc2012-partial"
    assert len(names(left)) == 4 and not (root / "VOCdevkit").exists()
    (left / "stray").write_bytes(b"")
    install_voc2012(root, tar)
    assert_installed(root)
    assert not left.exists()


def test_interrupted_extraction_leaves_no_voc(tar, root, monkeypatch):
    monkeypatch.setattr(tarfile.TarFile, "extractall", interrupt)
    with pytest.raises(KeyboardInterrupt):
        install_voc2012(root, tar)
    assert names(root) == [] and not (root / "VOCdevkit").exists()


def test_of_two_one_installs_and_the_other_waits(serve, tar, root, monkeypatch, capsys):
    server = serve(tar.read_bytes(), cut=3000, cuts=1, stalls=True)  # long enough for both to meet
    monkeypatch.setattr(voc, "VOC2012_URLS", [server.url])
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(install_voc2012, [root, root])) == [root / "VOCdevkit" / "VOC2012"] * 2
    assert capsys.readouterr().out.count("waiting for it to finish") == 1
    assert server.ranges == [None, "bytes=3000-"]
    assert_installed(root)
