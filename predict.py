"""Predict images, or score a checkpoint on a data set.

    python predict.py photo.jpg folder/                              # with the best run
    python predict.py folder/ --ckpt runs/NAME/best.pth --output_dir predictions
    python predict.py photo.jpg --ckpt torchvision                   # with VOC's classes
    python predict.py --split val --scales 0.5 0.75 1.0 1.25 1.5 1.75 --flip
    python predict.py --split val --crop_val --save_predictions

Images give `<stem>.png` (class indices as a palette PNG, at the image's size) and
`<stem>_overlay.png` in --output_dir; a split gives `scores_<split>.json` there.
"""

import argparse
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from datasets.image_files import pixel_limit, read_image, save_png
from utils.checkpoint import TORCHVISION, Checkpoint, load_checkpoint
from utils.common.errors import UserError, run_script
from utils.common.progress import progress
from utils.common.threads import AHEAD, THREADS, call_ahead
from utils.precision import choose_device, choose_precision, is_out_of_memory
from utils.predict.options import parse_args
from utils.predict.overlay import classes_in, draw_overlay, save_pred
from utils.predict.photos import find_images, name_outputs, output_files
from utils.predictor import Predictor
from utils.run_records import default_checkpoint
from utils.scores import score_checkpoint


def choose_checkpoint(args: argparse.Namespace) -> Checkpoint:
    """`--ckpt`, or the best run, or torchvision's weights; says which, and why.

    Raises:
        UserError: the checkpoint cannot be used, or the weights cannot be downloaded.
    """
    source, reason = args.ckpt, "--ckpt"
    if source is None:
        source, reason = default_checkpoint(Path(args.runs_dir))
    if source is None:
        print(f"{reason}: taking torchvision's weights; --ckpt FILE takes others", flush=True)
        source = TORCHVISION
    checkpoint = load_checkpoint(source)
    print(
        f"weights: {checkpoint.path} ({reason}): {checkpoint.kind}, {checkpoint.model}, output "
        f"stride {args.output_stride or checkpoint.output_stride or 'unknown'}, "
        f"{checkpoint.num_classes} classes",
        flush=True,
    )
    return checkpoint


def make_output_dir(folder: Path) -> None:
    """Make the folder and try to write in it, before any work is done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror}): give another --output_dir"
        ) from None


def predict_images(paths: list[Path], output_dir: Path, predictor: Predictor) -> int:
    """Predict and save each image; reading and saving run beside the model.

    Returns:
        The exit status: 1 if some images could not be done.
    """
    names = dict(zip(paths, name_outputs(paths, output_dir), strict=True))
    unpredicted, unsaved = [], []
    start = time.perf_counter()
    bar = progress(call_ahead(read_image, paths), "predict", len(paths), unit="image")

    def predict() -> Iterator[tuple[Path, torch.Tensor, np.ndarray]]:
        for path, reading in bar:
            try:
                image = reading.result()
                pred = predictor.predict_image(image)
            except Exception as error:
                unpredicted.append(explain_failure(path, error))
            else:
                yield path, image, pred

    def save(prediction: tuple[Path, torch.Tensor, np.ndarray]) -> list[int]:
        path, image, pred = prediction
        mask, overlay = (output_dir / file for file in output_files(names[path]))
        save_pred(mask, pred, predictor.palette)
        picture = draw_overlay(image, pred, predictor.class_names, predictor.palette)
        save_png(overlay, picture)
        return classes_in(pred)

    done: list[list[int]] = []
    with bar:
        for (path, *_), saving in call_ahead(save, predict()):
            try:
                done.append(saving.result())
            except Exception as error:
                unsaved.append(explain_failure(path, error))
    seconds = time.perf_counter() - start
    found = [predictor.class_names[index] for index in sorted(set().union(*done))]
    print(
        f"{len(done)} of {len(paths)} images in {seconds:.1f} s ({len(done) / seconds:.2f} "
        f"images/s), results in {output_dir}\nclasses found: {', '.join(found) or 'none'}"
    )
    failures = [*unpredicted, *unsaved]
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


def explain_failure(path: Path, error: Exception) -> str:
    """Why an image failed, in one line; a fault of the program is raised again."""
    if is_out_of_memory(error):
        torch.cuda.empty_cache()
        return f"{path}: out of memory: give a smaller --window"
    if not isinstance(error, UserError | OSError):
        raise error
    return str(error) if str(error).startswith(str(path)) else f"{path}: {error}"


def score_split(args: argparse.Namespace, predictor: Predictor, output_dir: Path) -> None:
    """Score a split, and write its scores and, if asked for, the predictions."""
    pending: deque[Future] = deque()
    with ThreadPoolExecutor(THREADS) as pool:

        def save(sample: str, pred: np.ndarray) -> None:
            path = output_dir / f"{sample}.png"
            pending.append(pool.submit(save_pred, path, pred, predictor.palette))
            if len(pending) > AHEAD:
                pending.popleft().result()

        score_checkpoint(predictor, args, output_dir, save if args.save_predictions else None)
    for saving in pending:
        saving.result()


def main(argv: list[str] | None = None) -> int:
    """Predict or score as the flags say; returns the exit status."""
    args = parse_args(__doc__, argv)
    output_dir = Path(args.output_dir)
    paths = find_images(args.inputs, output_dir)
    make_output_dir(output_dir)
    device = choose_device(args.device)
    precision = choose_precision(args.precision, device)
    checkpoint = choose_checkpoint(args)
    print(f"{precision} on {device}")
    if args.val_image_set:
        stored = checkpoint.content["args"] if checkpoint.kind == "own" else {}
        args = parse_args(__doc__, argv, stored)
    views = {key: getattr(args, key) for key in ("scales", "flip", "window", "overlap")}
    predictor = Predictor.from_checkpoint(
        checkpoint, device, precision, args.output_stride, **views
    )
    if args.val_image_set:
        score_split(args, predictor, output_dir)
        return 0
    with pixel_limit(args.max_pixels):
        return predict_images(paths, output_dir, predictor)


if __name__ == "__main__":
    run_script(main)
