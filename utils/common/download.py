"""Files from the internet: several mirrors, going on after an interruption, size and MD5."""

import contextlib
import http.client
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from utils.common.errors import UserError
from utils.common.locks import locked
from utils.common.progress import progress

TIMEOUT = 10.0  # seconds without an answer or a byte, after which a connection counts as cut
CHUNK = 1 << 16  # bytes


class DownloadError(UserError):
    """No mirror could send the file."""


def download_file(urls: Sequence[str], path: Path, size: int, md5: str | None = None) -> None:
    """Download a file from the first mirror that has it; a file already there is only checked.

    The bytes go to `<path>.part`, which an interrupted download leaves and the next one continues.

    Args:
        urls: mirrors, tried in turn.
        path: where to put the file; its folder is made if missing.
        size: bytes of the file.
        md5: hexadecimal MD5 of the file, or None if it is not known.

    Raises:
        DownloadError: no mirror could send it.
        UserError: the file there is another one, the disk is too full, or the folder cannot be
            written.
    """
    part = path.with_name(path.name + ".part")
    lost = urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError
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
                _download_from(url, part, size, md5)
                os.replace(part, path)
                return
            except lost as error:
                reason = " ".join(str(error).split())
                failures.append(f"{url.split('/')[2]}: {reason}")
                print(f"{url}: {reason}", flush=True)
        if done := file_size(part):
            failures.append(f"{done / 1e6:.1f} MB are in {part}, and the next try goes on there")
        raise DownloadError(f"{path}: no mirror sent it: {'; '.join(failures)}")


def check_file(path: Path, size: int, md5: str | None = None) -> None:
    """Raise a `UserError` if a file is missing, or its size or MD5 is another."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    what, found, expected = "size in bytes", f"{file_size(path):,}", f"{size:,}"
    if found == expected and md5 is not None:
        what, found, expected = "MD5", _md5(path), md5
    if found != expected:
        raise UserError(
            f"{path}: its {what} is {found} where {expected} is expected, so it is damaged or "
            "another file: remove it and get it again"
        )


def _md5(path: Path) -> str:
    from torchvision.datasets.utils import calculate_md5

    return calculate_md5(path)


def check_space(folder: Path, size: int) -> None:
    """Raise a `UserError` if the disk of `folder` has fewer than `size` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise UserError(
            f"{folder}: {size / 1e9:.1f} GB are needed, but only {free / 1e9:.1f} GB are free: "
            "make room, or choose a folder on another disk"
        )


def file_size(path: Path) -> int:
    """Bytes of a file, 0 if there is none."""
    return path.stat().st_size if path.exists() else 0


def _download_from(url: str, part: Path, size: int, md5: str | None) -> None:
    """Complete `part` from one mirror, over as many connections as bring it forward."""
    all_its_own = not part.exists()
    before = -1
    while (done := file_size(part)) != size:
        if done <= before:
            raise ConnectionError(f"the connection ended after {done:,} of {size:,} bytes")
        _receive(url, part, size)
        before = done
    if md5 is not None and _md5(part) != md5:
        part.unlink()
        if all_its_own:
            raise ConnectionError(f"sends another file (its MD5 is not {md5})")
        _download_from(url, part, size, md5)  # the bytes from before may be the wrong ones


def _receive(url: str, part: Path, size: int) -> None:
    """Add what a mirror sends to `part`; a mirror without ranges begins it again."""
    start = file_size(part)
    headers = {"User-Agent": "deeplab-download"} | ({"Range": f"bytes={start}-"} if start else {})
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        if response.status == 206:
            sent = response.headers.get("Content-Range", "")
            fits = sent.startswith(f"bytes {start}-{size - 1}/")
        else:
            start, fits = 0, response.headers.get("Content-Length") == str(size)
        if not fits:
            raise ConnectionError(f"sends another file (not one of {size:,} bytes)")
        place = f"({start / 1e6:,.1f} of {size / 1e6:,.1f} MB)"
        print(f"downloading {url} to {part} {place}", flush=True)
        bar = progress(None, part.stem, size, initial=start, unit="B", unit_scale=True, leave=False)
        with part.open("ab" if start else "wb") as file, bar:
            for chunk in _chunks(response):
                file.write(chunk)
                bar.update(len(chunk))


def _chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """What comes, as it comes, until the connection ends or is cut."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        while chunk := response.read1(CHUNK):
            yield chunk


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
