"""What `sam_infer.py` does with each image, and what it leaves of it."""

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from datasets.image_files import save_png
from utils.common.errors import UserError
from utils.predictor import Predictor
from utils.sam.mask_files import Masks, draw_masks, image_checksum, load_masks, save_masks
from utils.sam.mask_maker import MaskMaker, say
from utils.sam.region_scores import RegionScores
from utils.sam.regions import component_prompts

# Image uint8 (3, H, W), and target uint8 (H, W) or None.
Load = Callable[[], tuple[torch.Tensor, torch.Tensor | None]]
REMEDY = "--overwrite makes them again, --output_dir DIR puts them elsewhere"


@dataclasses.dataclass
class Work:
    """What is done to each image.

    Attributes:
        folder: of the results.
        made_with: what decides on the masks; it is stored with them.
        maker: makes masks; None until some are needed.
        predictor: DeepLab, if there is one.
        prompts_from: the lowest class to prompt for; None for a grid of points.
        scores: of the masks, if there is ground truth.
        seconds: that the masks of each image took, by its name.
    """

    folder: Path
    made_with: dict[str, Any]
    predictor: Predictor | None
    prompts_from: int | None
    scores: RegionScores | None
    maker: MaskMaker | None = None
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    def is_done(self, name: str) -> bool:
        """Whether the two files are there, whole and of these settings.

        Raises:
            UserError: they are of other settings.
        """
        path = self.folder / f"{name}.npz"
        if not all(map(os.path.exists, (path, path.with_suffix(".png")))):
            return False
        try:
            before = load_masks(path).settings.get("made_with", {})
        except UserError as error:
            say(f"{error}; making it again")
            return False
        keys = {**before, **self.made_with}
        if other := [key for key in keys if before.get(key) != self.made_with.get(key)]:
            kinds = " and ".join(other)
            raise UserError(f"{path}: holds masks made with another {kinds}: {REMEDY}")
        return True

    def do(self, name: str, load: Load, is_done: bool) -> None:
        """Make the masks of an image or read them, and score them."""
        image, target = load()
        pred = torch.from_numpy(self.predictor.predict_image(image)) if self.predictor else None
        masks = self.read(name, image) if is_done else self.make(name, image, pred)
        if self.scores and target is not None:
            self.scores.update(target, masks, pred)
        self.seconds[name] = masks.settings["seconds"]

    def read(self, name: str, image: torch.Tensor) -> Masks:
        """The masks that an earlier run made."""
        path = self.folder / f"{name}.npz"
        masks = load_masks(path)
        if masks.settings.get("image") != image_checksum(image):
            raise UserError(f"{path}: holds masks of another image of this name: {REMEDY}")
        return masks

    def make(self, name: str, image: torch.Tensor, pred: torch.Tensor | None) -> Masks:
        """Make masks and leave the two files; the picture comes first."""
        assert self.maker is not None  # it is there as soon as an image is not done
        start = time.perf_counter()
        prompts = None
        if pred is not None and self.prompts_from is not None:
            prompts = component_prompts(pred, self.prompts_from)
        masks = self.maker(image, prompts)
        masks.settings = {
            "made_with": self.made_with,
            "image": image_checksum(image),
            "seconds": time.perf_counter() - start,
        }
        if not len(masks):
            say(f"{name}: SAM found no mask in it")
        save_png(self.folder / f"{name}.png", draw_masks(image, masks))
        save_masks(self.folder / f"{name}.npz", masks)
        return masks
