"""SAM's weights: where they are, and the model that they belong to."""

import hashlib
import importlib.util
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from utils.checkpoint import load_weights
from utils.common.checkpoint_files import read_file
from utils.common.download import DownloadError, download_file
from utils.common.errors import UserError
from utils.common.progress import say
from utils.foreign_weights import find_state_dict

URL = "https://dl.fbaipublicfiles.com/segment_anything/"
WIDTH_KEY = "image_encoder.pos_embed"  # (1, h, w, width): the width tells the sizes apart


class SamModel(NamedTuple):
    """A published size: channels of its image encoder, name and bytes of its official weights."""

    width: int
    file: str
    size: int


SAM_MODELS = {
    "vit_b": SamModel(768, "sam_vit_b_01ec64.pth", 375_042_383),
    "vit_l": SamModel(1024, "sam_vit_l_0b3195.pth", 1_249_524_607),
    "vit_h": SamModel(1280, "sam_vit_h_4b8939.pth", 2_564_550_879),
}


def find_weights(name: str, checkpoint: str | None = None) -> Path:
    """`checkpoint`, or else the official weights in torch's hub folder, downloaded if need be.

    Raises:
        UserError: they cannot be downloaded, or the package is missing.
    """
    if importlib.util.find_spec("segment_anything") is None:
        raise UserError("the package segment_anything is missing: pip install segment-anything")
    if checkpoint:
        return Path(checkpoint)
    model = SAM_MODELS[name]
    path = Path(torch.hub.get_dir()) / "checkpoints" / model.file
    try:
        download_file([URL + model.file], path, model.size)
    except DownloadError as error:
        raise UserError(
            f"--sam_model {name}: its weights ({model.size / 1e6:.0f} MB) could not be downloaded: "
            f"give --sam_checkpoint FILE, or put {model.file} into {path.parent} ({error})"
        ) from None
    return path


def load_sam(name: str, path: Path) -> nn.Module:
    """Build a SAM (a key of `SAM_MODELS`) and load its weights, on the CPU, to evaluate.

    Wrappers such as `{"model": ...}` and `module.`, which fine-tuning leaves, are taken off.

    Raises:
        UserError: the file is missing, broken, of another size or no SAM.
    """
    from segment_anything import sam_model_registry  # slow

    state_dict, note = find_state_dict(path, read_file(path, flag="--sam_checkpoint"))
    width = state_dict[WIDTH_KEY].shape[-1] if WIDTH_KEY in state_dict else None
    if width != SAM_MODELS[name].width:
        sizes = [key for key, model in SAM_MODELS.items() if model.width == width]
        found = f"a SAM {sizes[0]}" if sizes else "no weights of a SAM"
        raise UserError(f"{path}: holds {found}, not {name}: give another file, or its --sam_model")
    if note:
        say(f"{path}: {note}")
    sam = sam_model_registry[name]()
    load_weights(sam, state_dict, path)
    return sam.eval()


def file_checksum(path: Path) -> str:
    """SHA-256 of a file, which tells weights and images apart, whatever their names.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): give another file") from None
