"""Predict images, or score a checkpoint on a data set.

    python predict.py photo.jpg folder/                              # with the newest run
    python predict.py folder/ --ckpt runs/NAME/best.pth --output_dir predictions
    python predict.py --split val --scales 0.5 0.75 1.0 1.25 1.5 1.75 --flip
    python predict.py --split val --crop_val --save_predictions

Images give `<stem>.png` (class indices in VOC's palette, at the image's size) and
`<stem>_overlay.png` in --output_dir; a split gives scores.json there.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from datasets.image_files import ImageError, pixel_limit, read_photo, save_png
from datasets.voc import CLASS_NAMES
from network.backbone import download_weights
from utils.checkpoint import (
    Checkpoint,
    describe_checkpoint,
    load_checkpoint,
)
from utils.common.errors import UserError, run_script
from utils.common.files import write_json
from utils.common.threads import Background, call_ahead
from utils.precision import choose_device, choose_precision
from utils.predict.options import parse_args
from utils.predict.overlay import classes_in, draw_overlay, save_pred
from utils.predict.photos import find_images, name_outputs, output_files
from utils.predictor import Predictor
from utils.run_folder import BEST_FILE
from utils.scores import score_checkpoint

TORCHVISION_WEIGHTS = ("deeplabv3_resnet50", "COCO_WITH_VOC_LABELS_V1")


def choose_checkpoint(args: argparse.Namespace) -> Checkpoint:
    """`--ckpt`, or the newest run, or torchvision's weights; says which.

    Raises:
        UserError: the checkpoint cannot be used, or the weights cannot be downloaded.
    """
    if args.ckpt:
        checkpoint, reason = load_checkpoint(args.ckpt), "--ckpt"
    elif runs := list(Path(args.runs_dir).rglob(BEST_FILE)):
        newest = max(runs, key=lambda path: path.stat().st_mtime)
        checkpoint, reason = load_checkpoint(newest), f"the newest below {args.runs_dir}"
    else:
        print(f"no {BEST_FILE} below {args.runs_dir}: taking torchvision's weights", flush=True)
        state = download_weights(*TORCHVISION_WEIGHTS, instead="--ckpt FILE, or train a run")
        path = Path(f"torchvision's {'.'.join(TORCHVISION_WEIGHTS)}")
        checkpoint, reason = describe_checkpoint(path, state), "trained on COCO, with VOC's classes"
    print(
        f"weights: {checkpoint.path} ({reason}): {checkpoint.kind}, {checkpoint.model}, output "
        f"stride {args.output_stride or checkpoint.output_stride or 'unknown'}, "
        f"{checkpoint.num_classes} classes",
        flush=True,
    )
    return checkpoint


def names_of(checkpoint: Checkpoint) -> list[str]:
    """The class names: the file's own; VOC's if there are 21; else numbers."""
    if checkpoint.class_names:
        return checkpoint.class_names
    if checkpoint.num_classes == len(CLASS_NAMES):
        return list(CLASS_NAMES)
    return [f"class {index}" for index in range(checkpoint.num_classes)]


def make_output_dir(folder: Path) -> None:
    """Make the folder and try to write in it, before any work is done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror}): give another --output_dir"
        ) from None


class LayerTimer:
    """Measures the time that backbone and head take.

    Attributes:
        seconds: their sum so far.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.seconds = 0.0
        self._device = device
        for part in (model.backbone, model.classifier):
            part.register_forward_pre_hook(self._begin)
            part.register_forward_hook(self._end)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def _begin(self, *_: object) -> None:
        self._began = self._now()

    def _end(self, *_: object) -> None:
        self.seconds += self._now() - self._began


def predict_images(
    paths: list[Path],
    output_dir: Path,
    predictor: Predictor,
    class_names: list[str],
    device: torch.device,
) -> int:
    """Predict and save each image; reading and saving run beside the model.

    Returns:
        The exit status: 1 if some images could not be done.
    """
    names = dict(zip(paths, name_outputs(paths, output_dir), strict=True))
    timer, failures = LayerTimer(predictor.model, device), []
    start = time.perf_counter()
    bar = tqdm(
        call_ahead(read_photo, paths), "predict", len(paths), unit="image",
        mininterval=0.5 if sys.stderr.isatty() else 30,
    )  # fmt: skip
    with Background() as saving, bar:
        for path, reading in bar:
            try:
                image = reading.result()
                pred = predictor(image[None].to(device))[0].cpu().numpy()
            except ImageError as error:
                failures.append(f"{path}: {error}")
            except torch.OutOfMemoryError:
                failures.append(f"{path}: {device} is out of memory: give a smaller --window")
                torch.cuda.empty_cache()
            else:
                saving.submit(save_results, output_dir, names[path], image, pred, class_names)
    seconds = time.perf_counter() - start
    found = [class_names[index] for index in sorted(set().union(*saving.results))]
    print(
        f"{len(saving.results)} of {len(paths)} images in {seconds:.1f} s "
        f"({len(saving.results) / seconds:.2f} images/s, {100 * timer.seconds / seconds:.0f} % of "
        f"the time in the model), results in {output_dir}\n"
        f"classes found: {', '.join(found) or 'none'}"
    )
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


def save_results(
    output_dir: Path, name: str, image: torch.Tensor, pred: np.ndarray, class_names: list[str]
) -> list[int]:
    """Write mask and overlay; returns the classes in them."""
    mask_file, overlay_file = output_files(name)
    save_pred(output_dir / mask_file, pred)
    save_png(output_dir / overlay_file, draw_overlay(image, pred, class_names))
    return classes_in(pred)


def score_split(
    args: argparse.Namespace,
    checkpoint: Checkpoint,
    output_dir: Path,
    device: torch.device,
    precision: str,
    **options: object,
) -> None:
    """Score a split, and write scores.json and, if asked for, the predictions."""
    with Background() as saving:

        def save(sample: str, pred: np.ndarray) -> None:
            saving.submit(save_pred, output_dir / f"{sample}.png", pred)

        keep = save if args.save_predictions else None
        scores = score_checkpoint(checkpoint, args, device, precision, keep, **options)
    write_json(output_dir / "scores.json", scores)
    print(f"results in {output_dir}")


def main(argv: list[str] | None = None) -> int:
    """Predict or score as the flags say; returns the exit status."""
    args = parse_args(__doc__, argv)
    paths = find_images(args.inputs)
    output_dir = Path(args.output_dir)
    make_output_dir(output_dir)
    device = choose_device(args.device)
    precision = choose_precision(args.precision, device)
    checkpoint = choose_checkpoint(args)
    print(f"{precision} on {device}")
    views = {key: getattr(args, key) for key in ("scales", "flip", "window", "overlap")}
    if args.val_image_set:
        stored = checkpoint.content["args"] if checkpoint.kind == "own" else {}
        args = parse_args(__doc__, argv, stored)
        score_split(args, checkpoint, output_dir, device, precision, **views)
        return 0
    predictor = Predictor.from_checkpoint(
        checkpoint, device, precision, args.output_stride, **views
    )
    with pixel_limit(args.max_pixels):
        return predict_images(paths, output_dir, predictor, names_of(checkpoint), device)


if __name__ == "__main__":
    run_script(main)
