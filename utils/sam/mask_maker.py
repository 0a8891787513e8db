"""Segment Anything: its weights, and its masks of an image.

The package `segment_anything` is imported where it is needed: `--help` does without.
"""

import dataclasses
import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from utils.checkpoint import load_weights, read_file
from utils.common.download import DownloadError, download_file
from utils.common.errors import UserError
from utils.precision import choose_precision, is_out_of_memory
from utils.sam.mask_files import Masks
from utils.sam.regions import Prompts

URL = "https://dl.fbaipublicfiles.com/segment_anything/"
WIDTH_KEY = "image_encoder.pos_embed"  # (1, h, w, width): the width tells the sizes apart
MASK_BYTES = 2**31  # what the logits of one batch of points may take at the image's size


@dataclasses.dataclass(frozen=True)
class SamModel:
    """A published size: channels of its image encoder, name and bytes of its official weights."""

    width: int
    file: str
    size: int


SAM_MODELS = {
    "vit_b": SamModel(768, "sam_vit_b_01ec64.pth", 375_042_383),
    "vit_l": SamModel(1024, "sam_vit_l_0b3195.pth", 1_249_524_607),
    "vit_h": SamModel(1280, "sam_vit_h_4b8939.pth", 2_564_550_879),
}


def load_sam(name: str, path: Path) -> nn.Module:
    """Build a SAM (a key of `SAM_MODELS`) and load its weights, on the CPU, to evaluate.

    Raises:
        UserError: the file is missing, broken, of another size or no SAM.
    """
    from segment_anything import sam_model_registry

    state_dict = read_file(path, flag="--sam_checkpoint")
    if not isinstance(state_dict.get(WIDTH_KEY), torch.Tensor):
        raise UserError(f"{path}: holds no weights of a SAM: give another --sam_checkpoint")
    width = state_dict[WIDTH_KEY].shape[-1]
    found = next((key for key, model in SAM_MODELS.items() if model.width == width), None)
    if found != name:
        raise UserError(
            f"{path}: is a SAM {found or f'of {width} channels'}, not {name}: give "
            + (f"--sam_model {found}" if found else "another --sam_checkpoint")
        )
    sam = sam_model_registry[name]()
    load_weights(sam, state_dict, path)
    return sam.eval()


def find_weights(name: str, checkpoint: str | None = None) -> Path:
    """`checkpoint`, or else the official weights in torch's hub folder, downloaded if need be.

    Raises:
        UserError: they cannot be downloaded, the file there is cut off, or the package that they
            are for is missing.
    """
    try:
        import segment_anything  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"the package segment_anything is missing ({error}): pip install segment-anything"
        ) from None
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


def file_checksum(path: Path) -> str:
    """SHA-256 of a file: tells weights apart, whatever the file's name.

    Raises:
        UserError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): give another file") from None
    return digest.hexdigest()


class MaskMaker:
    """Makes masks of images, with less memory where memory runs out.

    The batch of points is halved until the image fits, and stays so for the next images; where not
    even one point fits, this image is done on the CPU.

    Args:
        sam: the model.
        settings: arguments of `SamAutomaticMaskGenerator`, `points_per_batch` among them.
        device: where it runs.
        precision: of the image encoder, a name in `utils.precision.PRECISIONS`.
    """

    def __init__(
        self, sam: nn.Module, settings: Mapping[str, Any], device: torch.device, precision: str
    ) -> None:
        self.sam = sam
        self.settings = settings
        self.device = device
        self.precision = precision
        self.batch = settings["points_per_batch"]

    def __call__(self, image: torch.Tensor, prompts: Prompts | None = None) -> Masks:
        """The masks of an image.

        Args:
            image: uint8 (3, H, W), RGB.
            prompts: what to segment; None for a grid of points.

        Raises:
            UserError: memory runs out on the CPU too.
        """
        height, width = image.shape[1:]
        fitting = max(MASK_BYTES // (3 * 4 * height * width), 1)  # three float masks a point
        device, batch = self.device, min(self.batch, fitting)
        array = image.permute(1, 2, 0).numpy()
        while True:
            try:
                records = self._make_records(array, prompts, device, batch)
                return masks_from_records(records, (height, width), prompts)
            except Exception as error:  # it holds tensors: go on without it
                if not is_out_of_memory(error):
                    raise
            torch.cuda.empty_cache()  # does nothing elsewhere
            if batch > 1:
                self.batch = batch = batch // 2
                say(f"out of memory: trying again with --points_per_batch {batch}")
            elif device.type != "cpu":
                device = torch.device("cpu")
                batch = min(self.settings["points_per_batch"], fitting)
                say("out of memory with one point at a time: doing this image on the CPU")
            else:
                raise UserError(
                    f"--sam_model: out of memory for an image of {width}x{height}, also on the "
                    "CPU: take a smaller SAM or a smaller image"
                )

    def _make_records(
        self, image: np.ndarray, prompts: Prompts | None, device: torch.device, batch: int
    ) -> list[dict[str, Any]]:
        """One record for each mask, as `SamAutomaticMaskGenerator.generate` gives them."""
        from segment_anything import SamAutomaticMaskGenerator

        from utils.sam.prompt_predictor import PromptPredictor

        boxes = None
        settings = {**self.settings, "points_per_batch": batch}
        if prompts is not None:
            if not len(prompts.points):
                return []
            # The generator does the rest; what is asked for twice must not be dropped as double.
            grid = prompts.points.double().numpy() / (image.shape[1], image.shape[0])
            settings |= {"points_per_side": None, "point_grids": [grid], "box_nms_thresh": 1.0}
            boxes = prompts.boxes.numpy()
        precision = choose_precision(self.precision, device)
        if self.precision == "auto" and precision == "fp16":
            precision = "fp32"  # SAM's attention overflows in fp16
        sam = self.sam.to(device)
        generator = SamAutomaticMaskGenerator(sam, output_mode="uncompressed_rle", **settings)
        generator.predictor = PromptPredictor(sam, precision, boxes)
        return generator.generate(image)


def masks_from_records(
    records: list[dict[str, Any]], size: tuple[int, int], prompts: Prompts | None
) -> Masks:
    """Sort the records of an image of (H, W) by area, largest first; empty masks are dropped."""
    records = sorted((record for record in records if record["area"]), key=lambda r: -r["area"])
    count = len(records)

    def column(name: str, dtype: type, *shape: int) -> np.ndarray:
        return np.array([record[name] for record in records], dtype).reshape(count, *shape)

    boxes = column("bbox", np.int32, 4)
    boxes[:, 2:] += boxes[:, :2] + 1  # the package's width is last pixel less first pixel
    points = column("point_coords", np.float32, 2)
    prompt_boxes, classes = np.full((count, 4), np.nan, np.float32), np.full(count, -1)
    if prompts is not None:
        asked = {tuple(point): number for number, point in enumerate(prompts.points.tolist())}
        numbers = [asked[tuple(point)] for point in points.round().astype(int).tolist()]
        prompt_boxes[:] = prompts.boxes[numbers]
        classes[:] = prompts.classes[numbers]
    return Masks(
        size=size,
        counts=[np.array(record["segmentation"]["counts"], np.int32) for record in records],
        boxes=boxes,
        predicted_iou=column("predicted_iou", np.float32),
        stability=column("stability_score", np.float32),
        points=points,
        prompt_boxes=prompt_boxes,
        classes=classes,
    )


def say(note: str) -> None:
    """Print a line without spoiling the progress bar."""
    tqdm.write(note, file=sys.stderr)
