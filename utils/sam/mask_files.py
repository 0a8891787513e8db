"""SAM's masks of one image: the `.npz` files that hold them, and pictures of them.

A file `<id>.npz` (`numpy.load`, no pickle needed) holds N masks, largest area first, so that those
painted later lie over those that contain them:

    size           int64 (2,)      height and width of the image
    counts         int32 (total,)  run lengths of all masks, one mask after the other
    offsets        int64 (N + 1,)  mask i is counts[offsets[i]:offsets[i + 1]]
    boxes          int32 (N, 4)    x0, y0, x1, y1: the mask lies in [y0:y1, x0:x1]
    predicted_iou  float32 (N,)    SAM's own estimate of the mask's quality
    stability      float32 (N,)    IoU of the masks at a stricter and a laxer threshold
    points         float32 (N, 2)  x, y of the point that SAM was asked about
    prompt_boxes   float32 (N, 4)  x0, y0, x1, y1 of the box that it was asked about; NaN: none
    classes        int64 (N,)      class of the prompt; -1 if it had none
    settings       JSON text       `made_with` (what decides on them), `seconds` that it took

Run lengths are COCO's uncompressed ones: down the columns, from the left one on, and the first run
is outside the mask (it may be 0). `{"size": size, "counts": counts}` is what pycocotools takes.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from datasets.colours import distinct_colours
from utils.common.errors import UserError
from utils.common.files import write_atomically
from utils.common.progress import say
from utils.sam.regions import border_band, index_map

_ARRAYS = ("boxes", "predicted_iou", "stability", "points", "prompt_boxes", "classes")


@dataclasses.dataclass
class Masks(Sequence[torch.Tensor]):
    """The masks of an image, largest first; `masks[i]` is a bool tensor (H, W).

    The attributes are the file's arrays; `counts` holds the run lengths of each mask by itself.
    """

    size: tuple[int, int]
    counts: list[np.ndarray]
    boxes: np.ndarray
    predicted_iou: np.ndarray
    stability: np.ndarray
    points: np.ndarray
    prompt_boxes: np.ndarray
    classes: np.ndarray
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, index: int) -> torch.Tensor:  # type: ignore[override]  # no slices
        height, width = self.size
        counts = self.counts[index]
        values = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
        return torch.from_numpy(values.reshape(width, height).T)


def save_masks(path: Path, masks: Masks) -> None:
    """Write `<id>.npz`, whole or not at all."""
    lengths = [len(counts) for counts in masks.counts]
    with write_atomically(path) as partial, open(partial, "wb") as file:
        np.savez_compressed(
            file,
            size=np.array(masks.size, np.int64),
            counts=np.concatenate([np.zeros(0, np.int32), *masks.counts]),
            offsets=np.cumsum([0, *lengths]),
            settings=np.array(json.dumps(masks.settings)),
            **{name: getattr(masks, name) for name in _ARRAYS},
        )


def load_masks(path: Path) -> Masks:
    """Read `<id>.npz`.

    Raises:
        UserError: it is missing, cut off, or another kind of file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            height, width = file["size"].tolist()
            starts, lengths = file["offsets"].tolist(), file["counts"]
            return Masks(
                size=(height, width),
                counts=[lengths[a:b] for a, b in zip(starts, starts[1:], strict=False)],
                settings=json.loads(str(file["settings"])),
                **{name: file[name] for name in _ARRAYS},
            )
    except Exception as error:  # NumPy documents no list of what a broken file raises
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{path}: not readable as masks ({reason}): make it again with sam_infer.py --overwrite"
        ) from None


def is_done(path: Path, made_with: dict[str, Any]) -> bool:
    """Whether an image has its two files, readable and of these settings.

    Raises:
        UserError: they are of other settings.
    """
    if not (path.exists() and path.with_suffix(".png").exists()):
        return False
    try:
        before = load_masks(path).settings.get("made_with", {})
    except UserError as error:
        say(f"{error}; making it again")
        return False
    # What an older file does not know is no difference.
    if other := sorted(k for k, value in made_with.items() if before.get(k, value) != value):
        raise UserError(
            f"{path}: holds masks made with another {' and '.join(other)}: --overwrite makes them "
            "again, --output_dir DIR puts them elsewhere"
        )
    return True


def draw_masks(image: torch.Tensor, masks: Masks) -> Image.Image:
    """Lay masks over their image, uint8 (3, H, W): colours, light borders; smaller ones on top."""
    indices = index_map(masks, masks.size)
    colours = torch.from_numpy(np.resize(distinct_colours(), (len(masks) + 1, 3)))
    picture = image.permute(1, 2, 0).float()
    covered = (indices >= 0)[..., None]
    picture = torch.where(covered, 0.4 * picture + 0.6 * colours[indices], picture)
    thickness = max(round(max(masks.size) / 1000), 1)  # on each side of a border
    picture[border_band(indices, thickness, ignore_index=-1)] = 255
    return Image.fromarray(picture.round().byte().numpy())
