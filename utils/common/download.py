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
NETWORK_ERRORS = (
    urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError
)  # fmt: skip


class DownloadError(UserError):
    """No mirror could send the file."""


def download_file(urls: Sequence[str], path: Path, size: int, md5: str | None = None) -> None:
    """Download a file from the first mirror that has it; a file already there is only checked.

    The bytes go to `<path>.part`, where the next mirror goes on, or the next run.

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
    with disk_errors(path.parent), locked(path.with_name(f".{path.name}.lock")):
        if path.exists():
            check_file(path, size, md5)
            return
        check_space(path.parent, size - file_size(part))
        failures = []
        for url in urls:
            try:
                _receive(url, part, size)
                if not is_file(part, size, md5):
                    part.unlink()
                    raise ConnectionError("sent another file")
                os.replace(part, path)
                return
            except NETWORK_ERRORS as error:
                failures.append(f"{url}: {error}")
                print(failures[-1], flush=True)
        if done := file_size(part):
            failures.append(f"{done / 1e6:.1f} MB are in {part}, and the next try goes on there")
        raise DownloadError(f"{path}: no mirror sent it: {'; '.join(failures)}")


def check_file(path: Path, size: int, md5: str | None = None) -> None:
    """Raise a `UserError` if a file is missing, or its size or MD5 is another."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if not is_file(path, size, md5):
        expected = f"{size:,} bytes" + (f" with MD5 {md5}" if md5 else "")
        raise UserError(
            f"{path}: is damaged or another file (not the {expected} that are expected): remove "
            "it and get it again"
        )


def is_file(path: Path, size: int, md5: str | None = None) -> bool:
    """Whether a file has this size and, if it is known, this MD5."""
    from torchvision.datasets.utils import check_md5

    return file_size(path) == size and (md5 is None or check_md5(path, md5))


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


def _receive(url: str, part: Path, size: int) -> None:
    """Complete `part` from one mirror; one that ignores ranges begins it again."""
    start = file_size(part)
    if start >= size:
        return
    headers = {"User-Agent": "deeplab-download", "Range": f"bytes={start}-"}
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        start = start if response.status == 206 else 0
        if response.headers.get("Content-Length") != str(size - start):
            raise ConnectionError(f"has another file (not one of {size:,} bytes)")
        place = f"({start / 1e6:,.1f} of {size / 1e6:,.1f} MB)"
        print(f"downloading {url} to {part} {place}", flush=True)
        bar = progress(None, part.stem, size, initial=start, unit="B", unit_scale=True, leave=False)
        with part.open("ab" if start else "wb") as file, bar:
            while chunk := response.read1(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    if file_size(part) < size:
        raise ConnectionError("the connection was cut")


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
