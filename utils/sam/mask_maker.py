"""Segment Anything: its weights, and its masks of an image.

Nothing but this file and `sam_infer.py` needs the package `segment_anything`.
"""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from segment_anything import SamAutomaticMaskGenerator, SamPredictor, sam_model_registry
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide
from tqdm import tqdm

from utils.checkpoint import load_weights, read_file
from utils.common.download import DownloadError, download_file
from utils.common.errors import UserError
from utils.precision import autocast, choose_precision
from utils.sam.mask_files import Masks
from utils.sam.regions import Prompts

URL = "https://dl.fbaipublicfiles.com/segment_anything/"
WIDTH_KEY = "image_encoder.pos_embed"  # (1, h, w, width): the width tells the sizes apart
MASK_BYTES = 2**31  # what the logits of one batch of points may take at the image's size


@dataclasses.dataclass(frozen=True)
class SamModel:
    """One of the published sizes.

    Attributes:
        build: makes it with random weights.
        width: channels of its image encoder.
        file: the name of its official weights.
        size: their bytes.
    """

    build: Callable[[], Sam]
    width: int
    file: str
    size: int


SAM_MODELS = {
    name: SamModel(sam_model_registry[name], width, file, size)
    for name, width, file, size in (
        ("vit_b", 768, "sam_vit_b_01ec64.pth", 375_042_383),
        ("vit_l", 1024, "sam_vit_l_0b3195.pth", 1_249_524_607),
        ("vit_h", 1280, "sam_vit_h_4b8939.pth", 2_564_550_879),
    )
}


def load_sam(name: str, checkpoint: str | Path | None = None) -> Sam:
    """Build a SAM and load its weights, on the CPU, in evaluation mode.

    Args:
        name: a key of `SAM_MODELS`.
        checkpoint: its weights; None for the official ones, downloaded to torch's hub folder.

    Raises:
        UserError: the file is missing, broken, of another size or no SAM, or cannot be downloaded.
    """
    path = Path(checkpoint) if checkpoint else download_sam(name)
    state_dict = read_file(path, flag="--sam_checkpoint")
    if not isinstance(state_dict.get(WIDTH_KEY), torch.Tensor):
        raise UserError(f"{path}: holds no weights of a SAM: give another --sam_checkpoint")
    width = state_dict[WIDTH_KEY].shape[-1]
    found = next((key for key, model in SAM_MODELS.items() if model.width == width), None)
    if found is None:
        raise UserError(
            f"{path}: a SAM of {width} channels, none of {', '.join(SAM_MODELS)}: give another "
            "--sam_checkpoint"
        )
    if found != name:
        raise UserError(f"{path}: is a SAM {found}, not {name}: give --sam_model {found}")
    sam = SAM_MODELS[name].build()
    load_weights(sam, state_dict, path)
    return sam.eval()


def download_sam(name: str) -> Path:
    """The official weights in torch's hub folder; downloaded if they are not there.

    Raises:
        UserError: they cannot be downloaded, or the file there is cut off.
    """
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


@dataclasses.dataclass(frozen=True)
class MaskSettings:
    """What `SamAutomaticMaskGenerator` is asked for; its own defaults.

    Attributes:
        points_per_side: the grid has the square of it.
        points_per_batch: prompts at a time; changes memory and speed alone.
        pred_iou_thresh: masks must have a higher predicted IoU; 0 for all.
        stability_score_thresh: masks must be at least so stable; 0 for all.
        min_mask_region_area: holes and islands below so many pixels are removed; needs OpenCV.
    """

    points_per_side: int = 32
    points_per_batch: int = 64
    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    min_mask_region_area: int = 0


class _Resize(ResizeLongestSide):
    """The package's own, for images of every shape and for devices without float64."""

    @staticmethod
    def get_preprocess_shape(oldh: int, oldw: int, long_side_length: int) -> tuple[int, int]:
        height, width = ResizeLongestSide.get_preprocess_shape(oldh, oldw, long_side_length)
        return max(height, 1), max(width, 1)

    def apply_coords(self, coords: np.ndarray, original_size: tuple[int, ...]) -> np.ndarray:
        return super().apply_coords(coords, original_size).astype(np.float32)


class _Predictor(SamPredictor):
    """The package's own, with the image encoder, and only that, in `precision`.

    The encoder ends in a normalisation with fp32 weights: what it gives is fp32.
    """

    def __init__(self, sam: Sam, precision: str) -> None:
        super().__init__(sam)
        self.transform = _Resize(sam.image_encoder.img_size)
        self.precision = precision

    def set_torch_image(self, transformed_image: torch.Tensor, original_image_size: Any) -> None:
        with autocast(self.precision, self.device):
            super().set_torch_image(transformed_image, original_image_size)


class _BoxPredictor(_Predictor):
    """Adds a box to each point; the points must come once, in the order of the boxes.

    Args:
        sam: the model.
        precision: of its image encoder.
        boxes: integer (N, 4), left, top, right and bottom pixel.
    """

    def __init__(self, sam: Sam, precision: str, boxes: np.ndarray) -> None:
        super().__init__(sam, precision)
        self.boxes = boxes

    def predict_torch(
        self,
        point_coords: torch.Tensor,
        point_labels: torch.Tensor,
        multimask_output: bool,
        return_logits: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        count = len(point_coords)
        boxes, self.boxes = self.boxes[:count], self.boxes[count:]
        boxes = self.transform.apply_boxes(boxes, self.original_size)
        return super().predict_torch(
            point_coords,
            point_labels,
            torch.from_numpy(boxes).to(self.device),
            multimask_output=False,  # a box leaves no doubt whether a part or the whole is meant
            return_logits=return_logits,
        )


class MaskMaker:
    """Makes masks of images, with less memory where memory runs out.

    The batch of points is halved until the image fits, and stays so for the next images; where not
    even one point fits, this image is done on the CPU.

    Args:
        sam: the model.
        settings: what is asked for.
        device: where it runs.
        precision: of the image encoder, a name in `utils.precision.PRECISIONS`.
    """

    def __init__(
        self, sam: Sam, settings: MaskSettings, device: torch.device, precision: str = "auto"
    ) -> None:
        self.sam = sam
        self.settings = settings
        self.device = device
        self.precision = precision
        self.batch = settings.points_per_batch

    def __call__(self, image: torch.Tensor, prompts: Prompts | None = None) -> Masks:
        """The masks of an image.

        Args:
            image: uint8 (3, H, W), RGB.
            prompts: what to segment; None for a grid of points.

        Raises:
            UserError: memory runs out on the CPU too.
        """
        height, width = image.shape[1:]
        fitting = MASK_BYTES // (3 * 4 * height * width)  # three float masks for each point
        device, batch = self.device, max(min(self.batch, fitting), 1)
        array = image.permute(1, 2, 0).numpy()
        while True:
            try:
                records = self._make_records(array, prompts, device, batch)
                return masks_from_records(records, (height, width), prompts)
            except torch.OutOfMemoryError:
                pass  # the exception holds tensors: go on without it
            if device.type == "cuda":
                torch.cuda.empty_cache()
            if batch > 1:
                self.batch = batch = batch // 2
                say(f"out of memory: trying again with --points_per_batch {batch}")
            elif device.type != "cpu":
                device = torch.device("cpu")
                batch = max(min(self.settings.points_per_batch, fitting), 1)
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
        if prompts is not None and not len(prompts.points):
            return []
        settings = self.settings
        sam, precision = self.sam.to(device), encoder_precision(self.precision, device)
        options: dict[str, Any] = {"points_per_side": settings.points_per_side}
        predictor = _Predictor(sam, precision)
        if prompts is not None:
            height, width = image.shape[:2]
            # The generator does the rest; what is asked for twice must not be dropped as double.
            grid = prompts.points.double().numpy() / (width, height)
            options = {"points_per_side": None, "point_grids": [grid], "box_nms_thresh": 1.0}
            predictor = _BoxPredictor(sam, precision, prompts.boxes.numpy())
        generator = SamAutomaticMaskGenerator(
            sam,
            points_per_batch=batch,
            pred_iou_thresh=settings.pred_iou_thresh,
            stability_score_thresh=settings.stability_score_thresh,
            min_mask_region_area=settings.min_mask_region_area,
            output_mode="uncompressed_rle",
            **options,
        )
        generator.predictor = predictor
        return generator.generate(image)


def encoder_precision(name: str, device: torch.device) -> str:
    """Resolve `auto` for the image encoder: bf16 where the hardware has it, else fp32."""
    precision = choose_precision(name, device)
    return "fp32" if name == "auto" and precision == "fp16" else precision


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
