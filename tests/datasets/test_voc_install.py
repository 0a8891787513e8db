"""VOC's archive is installed whole or not at all."""

import hashlib
import io
import re
import shutil
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from datasets import voc
from datasets.voc import VOC2012_NAME, install_voc2012
from utils.common.download import DownloadError
from utils.common.errors import UserError

FILES = {
    "JPEGImages/2007_000032.jpg": b"image" * 1000,
    "SegmentationClass/2007_000032.png": b"target",
    "SegmentationObject/2007_000032.png": b"object",
    "ImageSets/Segmentation/train.txt": b"2007_000032\n",
    "Annotations/2007_000032.xml": b"<xml/>",
}


@pytest.fixture
def tar(tmp_path, monkeypatch):
    """A small archive that counts as the true one, which the only mirror has."""
    path = tmp_path / "own.tar"
    with tarfile.open(path, "w") as archive:
        for name, data in FILES.items():
            member = tarfile.TarInfo(f"VOCdevkit/VOC2012/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    monkeypatch.setattr(voc, "VOC2012_SIZE", path.stat().st_size)
    monkeypatch.setattr(voc, "VOC2012_MD5", hashlib.md5(path.read_bytes()).hexdigest())
    monkeypatch.setattr(voc, "download_file", lambda urls, to, *_: shutil.copy(path, to))
    return path


@pytest.fixture
def root(tmp_path):
    return tmp_path / "data"


def names(folder):
    """All files but the empty ones that locks leave."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return sorted(str(path.relative_to(folder)) for path in files if path.suffix != ".lock")


def assert_installed(root, more=()):
    assert names(root) == sorted([*(f"VOCdevkit/VOC2012/{name}" for name in FILES), *more])
    for name, data in FILES.items():
        assert (root / "VOCdevkit/VOC2012" / name).read_bytes() == data


def test_voc_is_downloaded_whole_and_the_archive_removed(tar, root):
    other = root / "VOCdevkit/VOC2007/readme"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"2007")
    install_voc2012(root)
    assert_installed(root, ["VOCdevkit/VOC2007/readme"])
    tar.unlink()
    install_voc2012(root)  # it is there already


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
    tar.write_bytes(tar.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=re.escape(f"{tar}: is damaged or another file")):
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
def test_voc_needs_room_for_archive_and_files(tar, root, monkeypatch, download_it):
    need = tar.stat().st_size * (205 if download_it else 105) // 100
    disk = SimpleNamespace(free=need - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk)
    with pytest.raises(UserError, match=re.escape(f"{root}: 0.0 GB are needed")):
        install_voc2012(root, None if download_it else tar)
    assert names(root) == []
    disk.free += 1
    install_voc2012(root, None if download_it else tar)
    assert_installed(root)


def test_root_that_is_a_file_is_a_user_error(tar, root):
    root.write_bytes(b"")
    with pytest.raises(UserError, match=re.escape(f"{root}: cannot be used")):
        install_voc2012(root, tar)


def test_without_network_one_line_names_the_ways_to_get_voc(tar, root, monkeypatch):
    def fail(*_):
        raise DownloadError("no name server")

    monkeypatch.setattr(voc, "download_file", fail)
    with pytest.raises(UserError) as error:
        install_voc2012(root)
    message = str(error.value)
    assert "\n" not in message and "VOC 2012 is missing" in message and str(root) in message
    assert all(flag in message for flag in ("--voc_archive", "--data_root", "--dataset shapes"))
    assert "no name server" in message and names(root) == []


def test_interrupted_extraction_leaves_no_voc_and_the_next_one_starts_over(tar, root, monkeypatch):
    extract, calls = tarfile.TarFile._extract_one, []

    def dying(*args, **kwargs):
        extract(*args, **kwargs)
        calls.append(1)
        if len(calls) == 4:  # all that segmentation needs is there
            raise KeyboardInterrupt

    left = root / ".voc2012-partial"
    for remove, count in ((shutil.rmtree, 0), (lambda *_, **__: None, 4)):  # a kill tidies nothing
        calls.clear()
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(tarfile.TarFile, "_extract_one", dying)
            patch.setattr(shutil, "rmtree", remove)
            install_voc2012(root, tar)
        assert len(names(root)) == count and not (root / "VOCdevkit").exists()
    (left / "stray").write_bytes(b"")
    install_voc2012(root, tar)
    assert_installed(root)
    assert not left.exists()


def test_of_two_one_installs_and_the_other_waits(tar, root, monkeypatch, capsys):
    asked = []

    def download(urls, path, *_):
        asked.append(path)
        time.sleep(0.5)  # long enough for both to meet
        shutil.copy(tar, path)

    monkeypatch.setattr(voc, "download_file", download)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(install_voc2012, [root, root])) == [root / "VOCdevkit" / "VOC2012"] * 2
    assert capsys.readouterr().out.count("waiting for it to finish") == 1 == len(asked)
    assert_installed(root)
