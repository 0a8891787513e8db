"""Files of tensors: written whole or not at all, and read so that nothing in them runs."""

import argparse
import contextlib
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


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint, whole or not at all; its tensors load on every machine."""
    with write_atomically(path) as partial:
        try:
            torch.save(_on_cpu(content), partial)
        except RuntimeError as error:  # what torch's zip writer makes of a failed write
            raise OSError(errno.EIO, f"is the disk full? {error}".splitlines()[0]) from None


def _on_cpu(value: Any) -> Any:
    """Containers with all tensors on the CPU: a file names the device of each."""
    if isinstance(value, torch.Tensor):
        return value.cpu()
    if isinstance(value, dict):
        return {key: _on_cpu(item) for key, item in value.items()}
    return type(value)(map(_on_cpu, value)) if isinstance(value, list | tuple) else value


def read_file(path: str | Path, flag: str = "--ckpt") -> dict[str, Any]:
    """Read a file of tensors, numbers, strings and NumPy scalars; nothing in it runs.

    `flag` is what gave the path, for the message if there is no such file.

    Raises:
        UserError: it is not there, damaged, no checkpoint, or holds more than such values.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # opening a pipe would wait for ever
        raise UserError(f"{path}: is not a file: give the file of a checkpoint to {flag}")
    try:
        with torch.serialization.safe_globals(_PLAIN_VALUES), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's guesses at what is wrong with a file
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): see {flag}") from None
    except Exception as error:  # torch.load documents no list of what a broken file raises
        raise UserError(f"{path}: {_explain_refusal(path, error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not a checkpoint")
    return content


def _explain_refusal(path: Path, error: Exception) -> str:
    """Why torch cannot load a file."""
    if name := re.search(r"GLOBAL (\S+)", str(error)):
        return (
            f"refused: it needs {name[1]}, which is more than tensors, numbers and NumPy scalars "
            "and could run code: save its state_dict alone"
        )
    with contextlib.suppress(Exception):  # torch's old format is no zip file, nor is a damaged one
        parts = {part.rpartition("/")[2] for part in zipfile.ZipFile(path).namelist()}
        if "data.pkl" not in parts or "constants.pkl" in parts:
            return (
                "is a program (TorchScript, .pt2) or another archive, not a checkpoint: give the "
                "weights that it was made from"
            )
    return "is damaged, cut off, or no checkpoint that this torch can read: get the file again"
