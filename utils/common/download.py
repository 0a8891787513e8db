"""Downloads that go on where they stopped, and archives that are extracted whole or not at all.

Two processes that want the same file take turns: the second one waits, and then finds the work
done (`locked()`).
"""

import contextlib
import hashlib
import http.client
import os
import queue
import re
import shutil
import sqlite3
import tarfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from utils.common.errors import UserError

# Seconds. A resolver whose first name server is dead answers after 5; four mirrors stay below 30.
CONNECT_TIMEOUT = 6.0
STALL_TIMEOUT = 20.0
LOCK_TIMEOUT = 7200.0
CHUNK = 1 << 16  # bytes


class DownloadError(UserError):
    """No mirror could send the file."""


class MirrorError(Exception):
    """This mirror cannot send the file; the next one may."""


def download_file(
    urls: Sequence[str],
    path: Path,
    size: int,
    md5: str | None = None,
    connect_timeout: float = CONNECT_TIMEOUT,
    stall_timeout: float = STALL_TIMEOUT,
) -> None:
    """Download a file from the first mirror that has it; a file already there is only checked.

    The bytes go to `<path>.part`, which an interrupted download leaves and the next one continues.

    Args:
        urls: mirrors, tried in turn.
        path: where to put the file; its folder is made if missing.
        size: bytes of the file; a mirror that announces another size is passed over.
        md5: hexadecimal MD5 of the file, or None if it is not known.
        connect_timeout: seconds for name, connection and first answer together, per mirror.
        stall_timeout: seconds without a byte after which a connection counts as cut.

    Raises:
        DownloadError: no mirror could send it.
        UserError: the file there is another one, the disk is too full, or the folder cannot be
            written.
    """
    part = part_of(path)
    with disk_errors(path.parent), locked(path.with_name(f".{path.name}.lock")):
        if path.exists():
            check_file(path, size, md5)
            return
        if file_size(part) > size:
            part.unlink()
        check_space(path.parent, size - file_size(part))
        failures = []
        for url in urls:
            try:
                _download_from(url, part, size, md5, connect_timeout, stall_timeout)
                os.replace(part, path)
                return
            except MirrorError as error:
                print(f"{url}: {error}", flush=True)
                failures.append(f"{url.split('/')[2]}: {error}")
        if done := file_size(part):
            failures.append(f"{done / 1e6:.1f} MB are in {part}, and the next try goes on there")
        raise DownloadError(f"{path}: no mirror sent it: {'; '.join(failures)}")


def check_file(path: Path, size: int, md5: str | None = None) -> None:
    """Check a file's size and, where it is known, its MD5 (with a progress bar).

    Raises:
        UserError: the file is missing, cut off or another one.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if (found := path.stat().st_size) != size:
        raise UserError(
            f"{path}: has {found:,} bytes where {size:,} are expected, so it is cut off or another "
            "file: remove it and get it again"
        )
    if md5 is not None and (digest := _file_md5(path)) != md5:
        raise UserError(
            f"{path}: its MD5 is {digest} where {md5} is expected, so it is damaged or another "
            "file: remove it and get it again"
        )


def check_space(folder: Path, size: int) -> None:
    """Raise a `UserError` if the disk of `folder` has fewer than `size` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise UserError(
            f"{folder}: {size / 1e9:.1f} GB are needed, but only {free / 1e9:.1f} GB are free: "
            "make room, or choose a folder on another disk"
        )


def extract_archive(archive: Path, folder: Path) -> None:
    """Extract a tar archive into a new folder; if anything is wrong, the folder is removed.

    Python's `data` filter keeps members and links inside the folder and refuses devices.

    Args:
        archive: the tar file.
        folder: made here; must not exist.

    Raises:
        UserError: the archive is cut off or no tar, or has a member that leads outside.
    """
    folder.mkdir(parents=True)
    try:
        with tarfile.open(archive, "r:") as tar, _bar("extract", file_size(archive)) as bar:
            for member in tar:
                if member.name.startswith("/"):  # the filter would move it into the folder
                    raise tarfile.AbsolutePathError(member)
                tar.extract(member, folder, filter="data")
                bar.update(tar.fileobj.tell() - bar.n)
            # tarfile takes a damaged header for the end: the true one is a block of zeros.
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("unexpected end of data")
    except BaseException as error:  # also Ctrl-C
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, tarfile.TarError):
            reason = " ".join(str(error).split())
            raise UserError(
                f"{archive}: cannot be extracted ({reason}): get the archive again"
            ) from None
        raise


@contextlib.contextmanager
def locked(path: Path, timeout: float = LOCK_TIMEOUT) -> Iterator[None]:
    """Hold a lock file; while another process holds it, wait and say so.

    The lock is SQLite's on an empty file: on every system it ends with the process that holds it,
    so a killed run leaves nothing that would block the next one.

    Args:
        path: the lock file. It is removed at the end.
        timeout: seconds to wait.

    Raises:
        UserError: the wait was in vain, or the folder has no working locks.
    """
    deadline = time.monotonic() + timeout
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = _try_lock(path)
    if connection is None:
        print(f"{path}: held by another process, waiting for it to finish", flush=True)
    while connection is None:
        if time.monotonic() > deadline:
            raise UserError(f"{path}: another process has held it for long: end that one first")
        time.sleep(0.2)
        connection = _try_lock(path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows removes no open file
            path.unlink()
        connection.close()


def _try_lock(path: Path) -> sqlite3.Connection | None:
    """Lock the file now, or return None."""
    path.touch()
    connection = None
    try:
        inode = path.stat().st_ino
        connection = sqlite3.connect(path, timeout=0, isolation_level=None)
        connection.execute("PRAGMA journal_mode = MEMORY")  # no second file beside it
        connection.execute("BEGIN EXCLUSIVE")
        # The last holder may have removed the file in between: a lock on that one excludes nobody.
        if path.stat().st_ino == inode:
            return connection
    except FileNotFoundError:
        pass
    except sqlite3.Error as error:
        if "locked" not in str(error):
            raise UserError(f"{path}: cannot be locked ({error}): choose another folder") from None
    if connection is not None:
        connection.close()
    return None


def _download_from(
    url: str, part: Path, size: int, md5: str | None, connect_timeout: float, stall_timeout: float
) -> None:
    """Complete `part` from one mirror and check it; `MirrorError` if that does not work."""
    resumed = file_size(part) > 0
    while (before := file_size(part)) < size:
        reason = _transfer(url, part, size, connect_timeout, stall_timeout)
        # A file that grows with every connection comes to its end, so the mirror is worth a retry.
        if file_size(part) <= before:
            raise MirrorError(reason)
    if md5 is None or (digest := _file_md5(part)) == md5:
        return
    part.unlink()
    if resumed:  # the bytes from before may be the wrong ones
        return _download_from(url, part, size, md5, connect_timeout, stall_timeout)
    raise MirrorError(f"sends another file (MD5 {digest} where {md5} is expected)")


def _transfer(
    url: str, part: Path, size: int, connect_timeout: float, stall_timeout: float
) -> str | None:
    """Append to `part` over one connection; returns why it ended early, None at the full size."""
    response, start = _open_at(url, file_size(part), size, connect_timeout, stall_timeout)
    print(
        f"downloading {size / 1e6:,.1f} MB from {url} to {part}"
        + (f", going on at {start / 1e6:,.1f} MB" if start else ""),
        flush=True,
    )
    with (
        response,
        part.open("ab" if start else "wb") as file,
        _bar(part.stem, size, start) as bar,
    ):
        while start < size:
            try:
                # read1() hands out what has come, so that a stall loses nothing.
                chunk = response.read1(min(CHUNK, size - start))
            except (OSError, http.client.HTTPException) as error:
                return _reason(error)
            if not chunk:
                return f"the connection ended after {start:,} of {size:,} bytes"
            file.write(chunk)
            start += len(chunk)
            bar.update(len(chunk))
    return None


def _open_at(
    url: str, start: int, size: int, connect_timeout: float, stall_timeout: float
) -> tuple[http.client.HTTPResponse, int]:
    """Ask for the bytes from `start` on; returns the response and where it really begins.

    That is `start`, or 0 from a server that ignores or refuses ranges. A response for a file of
    another size is a `MirrorError`, before `part` is touched.
    """
    response = _request(url, start, connect_timeout, stall_timeout)
    headers = response.headers
    if response.status == 200 and headers.get("Content-Length") == str(size):
        return response, 0
    if start and response.status == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", "").strip())
        if found and int(found[1]) == start and found[2] in ("*", str(size)):
            return response, start
    response.close()
    if start and response.status in (206, 416):
        return _open_at(url, 0, size, connect_timeout, stall_timeout)
    if response.status == 200:
        sent = headers.get("Content-Length", "an unknown number of")
        raise MirrorError(f"sends another file ({sent} bytes where {size} are expected)")
    raise MirrorError(f"HTTP status {response.status} {response.reason}")


def _request(
    url: str, start: int, connect_timeout: float, stall_timeout: float
) -> http.client.HTTPResponse | urllib.error.HTTPError:
    """The server's answer, whatever its status; `MirrorError` if there is none in time."""
    headers = {"User-Agent": "deeplab-download"} | ({"Range": f"bytes={start}-"} if start else {})
    request = urllib.request.Request(url, headers=headers)
    answers: queue.Queue = queue.Queue()
    # In a thread, since nothing else bounds a name look-up, or several addresses in turn.
    arguments = (request, stall_timeout, answers)
    threading.Thread(target=_put_answer, args=arguments, daemon=True).start()
    try:
        answer = answers.get(timeout=connect_timeout)
    except queue.Empty:
        raise MirrorError(f"no answer within {connect_timeout:g} s") from None
    if isinstance(answer, Exception) and not isinstance(answer, urllib.error.HTTPError):
        if isinstance(answer, (OSError, http.client.HTTPException)):
            raise MirrorError(_reason(answer))
        raise answer
    return answer


def _put_answer(request: urllib.request.Request, timeout: float, answers: queue.Queue) -> None:
    try:
        answers.put(urllib.request.urlopen(request, timeout=timeout))
    except Exception as error:  # raised again where the answer is awaited
        answers.put(error)


def _reason(error: Exception) -> str:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return " ".join(str(reason).split()) or type(error).__name__


def _file_md5(path: Path) -> str:
    """`torchvision.datasets.utils.calculate_md5`, with a progress bar."""
    md5 = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file, _bar("check", file_size(path)) as bar:
        while chunk := file.read(1 << 20):
            md5.update(chunk)
            bar.update(len(chunk))
    return md5.hexdigest()


def file_size(path: Path) -> int:
    """Bytes of a file, 0 if there is none."""
    return path.stat().st_size if path.exists() else 0


def part_of(path: Path) -> Path:
    """Where the bytes of an unfinished download lie."""
    return path.with_name(path.name + ".part")


def _bar(name: str, total: int, done: int = 0) -> tqdm:
    """A progress bar in bytes, on a terminal alone."""
    return tqdm(
        desc=name, total=total, initial=done, unit="B", unit_scale=True, leave=False, disable=None
    )


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn the failures of reading and writing files into `UserError`s."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{error.filename or folder}: cannot be used ({error.strerror or error}): it must be "
            f"readable, and {folder} a writable folder with room"
        ) from None
