"""Files of tensors: written whole or not at all, and read so that nothing in them runs."""

import argparse
import errno
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils.common.errors import UserError
from utils.common.files import write_atomically

# What foreign files hold beside tensors, none of which runs code: the public ancestor's best score
# is a NumPy scalar, which NumPy 1 and 2 pickle under different names; torchvision's reference
# script adds its arguments, a bag of values.
_PLAIN_VALUES: list[Any] = [
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(code)) for code in np.typecodes["AllInteger"] + "efd?"),
    argparse.Namespace,
]

# What other files begin with, and what is to be said of them.
_OTHER_FORMATS = (
    (
        rb"\s*<(!doctype|html|\?xml)",
        "is a web page, not a checkpoint: the download went wrong; get the file again",
    ),
    (rb"version https://git-lfs", "is a pointer of Git LFS, not the file itself: git lfs pull"),
    (
        rb"(?s).{8}\{\s*\"",
        "is a file of safetensors, which is not read here: torch.save what "
        "safetensors.torch.load_file gives",
    ),
    (
        rb"(?s)\x08.[\x12\x3a\x42]",
        "is an ONNX model, not a checkpoint: give the weights that it was exported from",
    ),
)


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint, whole or not at all."""
    with write_atomically(path) as partial:
        try:
            torch.save(content, partial)
        except RuntimeError as error:  # what torch's zip writer makes of a failed write
            raise OSError(errno.EIO, f"is the disk full? {error}".splitlines()[0]) from None


def read_file(path: str | Path, flag: str = "--ckpt") -> dict[str, Any]:
    """Read a file of tensors, numbers, strings and NumPy scalars; nothing in it runs.

    `flag` is what gave the path, for the message if there is no such file.

    Raises:
        UserError: it is not there, cut off, no checkpoint, or holds more than such values.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for ever
            kind = "a folder" if path.is_dir() else "no regular file"
            raise UserError(f"{path}: is {kind}: give the file of a checkpoint to {flag}")
        with path.open("rb") as file:
            start = file.read(64)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read ({reason}): see {flag}") from None
    try:
        with torch.serialization.safe_globals(_PLAIN_VALUES), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's guesses at what is wrong with a file
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load documents no list of what a broken file raises
        raise UserError(f"{path}: {_explain_refusal(path, start, error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not a checkpoint")
    return content


def _explain_refusal(path: Path, start: bytes, error: Exception) -> str:
    """Why torch cannot load a file, as true as its first bytes and the error allow."""
    if not start:
        return "is empty: get the file again"
    for pattern, text in _OTHER_FORMATS:
        if re.match(pattern, start, re.IGNORECASE):
            return text
    newer = f"was written by a newer torch than this one ({torch.__version__}): update torch"
    if "maximum supported version" in str(error):
        return newer
    name = re.search(r"GLOBAL (\S+)", str(error))
    if name:
        if re.fullmatch(r"torch\.(_\S+|\w+)", name[1]):  # the parts that tensors are made of
            return f"{newer}, or save its state_dict alone ({name[1]} is unknown here)"
        return (
            f"refused: it needs {name[1]}, which is more than tensors, numbers and NumPy scalars "
            "and could run code: save its state_dict alone"
        )
    if start.startswith(b"PK") and not zipfile.is_zipfile(path):
        return f"is cut off after {path.stat().st_size} bytes: get the file again"
    if start.startswith((b"PK", b"\x80")):
        return "is a damaged checkpoint, or not written by torch.save: get the file again"
    return "is no file of torch's: give a checkpoint"
