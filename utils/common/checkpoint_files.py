"""Files of tensors: written whole or not at all, and read so that nothing in them runs."""

import argparse
import errno
import re
import warnings
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
    """Write a checkpoint, whole or not at all."""
    with write_atomically(path) as partial:
        try:
            torch.save(content, partial)
        except RuntimeError as error:  # what torch's zip writer makes of a failed write
            raise OSError(errno.EIO, f"is the disk full? {error}".splitlines()[0]) from None


def read_file(path: str | Path, flag: str = "--ckpt") -> dict[str, Any]:
    """Read a file of tensors, numbers, strings and NumPy scalars; nothing in it runs.

    `flag` is what gave the path, for the message if it cannot be opened.

    Raises:
        UserError: it is not there, damaged, no checkpoint, or holds more than such values.
    """
    try:
        with torch.serialization.safe_globals(_PLAIN_VALUES), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's guesses at what is wrong with a file
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): see {flag}") from None
    except Exception as error:  # torch.load documents no list of what a broken file raises
        reason = "is damaged, or no checkpoint: give a file of weights that torch.load reads"
        if name := re.search(r"GLOBAL (\S+)", str(error)):
            reason = f"refused: it needs {name[1]}, which could run code: save its state_dict alone"
        raise UserError(f"{path}: {reason}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not a checkpoint")
    return content
