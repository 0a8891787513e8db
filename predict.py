"""Predict images, or score a checkpoint on a data set.

    python predict.py photo.jpg folder/                              # with the best run
    python predict.py folder/ --ckpt runs/NAME/best.pth --output_dir predictions
    python predict.py photo.jpg --ckpt torchvision                   # with VOC's classes
    python predict.py --split val --scales 0.5 0.75 1.0 1.25 1.5 1.75 --flip
    python predict.py --split val --crop_val --save_predictions

Images give `<stem>.png` (class indices as a palette PNG, at the image's size), `<stem>_overlay.png`
and, with --confidence, `<stem>_confidence.png` (the softmax of the class, 0 to 255) in
--output_dir, and predictions.csv the share of each class in each. A split gives
`scores_<split>.json` beside the checkpoint; one without masks is predicted with --save_predictions.
"""

import utils  # noqa: F401  # before torch, which reads what it sets

# isort: split
import argparse
import tempfile
import time
from collections.abc import Collection, Mapping
from pathlib import Path

from datasets import build_dataset
from datasets.image_files import pixel_limit
from utils.checkpoint import TORCHVISION, Checkpoint, load_checkpoint
from utils.common.errors import UserError, run_script
from utils.common.files import write_json
from utils.common.progress import progress
from utils.precision import choose_device, choose_precision, describe_precision
from utils.predict.options import parse_args
from utils.predict.photos import find_images, name_outputs, read_ahead
from utils.predict.results import Results
from utils.predictor import Predictor
from utils.run_records import default_checkpoint
from utils.scores import (
    Evaluation,
    describe_evaluation,
    predictions_folder,
    score_checkpoint,
    scores_file,
)


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
    checkpoint = load_checkpoint(source or TORCHVISION)
    print(
        f"weights: {checkpoint.path} ({reason}): {checkpoint.kind}, {checkpoint.model}, output "
        f"stride {args.output_stride or checkpoint.output_stride or 'unknown'}, "
        f"{checkpoint.num_classes} classes",
        flush=True,
    )
    return checkpoint


def make_output_dir(folder: Path) -> None:
    """Make the folder and try to write in it, before anything is computed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror}): give another --output_dir"
        ) from None


def predict_images(
    names: Mapping[Path, str], folder: Path, predictor: Predictor, extras: Collection[str] = ()
) -> int:
    """Predict and save each image; reading and saving run beside the model.

    Args:
        names: what the results of each image are called, in `folder`.
        folder: where results go.
        predictor: gives the classes.
        extras: what is left beside the masks: "overlay", "confidence".

    Returns:
        The exit status: 1 if some images could not be done.
    """
    results, start = Results(predictor), time.perf_counter()
    with progress(read_ahead(names), "predict", len(names), unit="image") as bar:
        for path, reading in bar:
            try:
                image, confidence = reading.result(), None
                if "confidence" in extras:
                    classes, confidence = predictor.predict_with_confidence(image)
                else:
                    classes = predictor.predict_image(image)
            except Exception as error:
                results.fail(str(path), error)
            else:
                mask, shown = folder / f"{names[path]}.png", image if "overlay" in extras else None
                results.add(str(path), mask, classes, shown, confidence)
    status = results.end(folder)
    seconds, number = time.perf_counter() - start, len(results.shares)
    by_class = zip(predictor.class_names, *results.shares.values(), strict=True)
    found = [name for name, *shares in by_class if any(shares)]
    print(
        f"{number} of {len(names)} images in {seconds:.1f} s ({number / seconds:.2f} images/s), "
        f"results in {folder}\nclasses found: {', '.join(found) or 'none'}"
    )
    return status


def score_split(
    predictor: Predictor, evaluation: Evaluation, folder: Path, save_predictions: bool
) -> int:
    """Score a split, and leave its scores and, if asked for, its predictions.

    Returns:
        The exit status: 1 if some predictions could not be saved.

    Raises:
        UserError: the split has no masks, and predictions were not asked for.
    """
    dataset = build_dataset(evaluation.source, evaluation.image_set, masks_optional=True)
    if not dataset.target_paths:
        if not save_predictions or evaluation.crop:
            raise UserError(
                f"{evaluation.name}: has no masks, and so no scores: --save_predictions predicts "
                "its images, without --crop_val"
            )
        print(f"{evaluation.name}: has no masks: predictions alone, no scores")
        settings = describe_evaluation(predictor, evaluation, dataset)
        file = scores_file(settings, folder, "predictions")
        write_json(file, settings)
        names = dict(zip(dataset.image_paths, dataset.ids, strict=True))
        return predict_images(names, file.with_suffix(""), predictor)
    results = Results(predictor)
    keep = results.add if save_predictions else None
    file = score_checkpoint(predictor, evaluation, folder, keep)
    if not save_predictions:
        return 0
    print(f"predictions in {predictions_folder(file)}")
    return results.end(predictions_folder(file))


def main(argv: list[str] | None = None) -> int:
    """Predict or score as the flags say; returns the exit status."""
    args = parse_args(__doc__, argv)
    folder, is_split = Path(args.output_dir or "predictions"), args.val_image_set is not None
    paths = find_images(args.inputs, folder)
    device = choose_device(args.device)
    precision = choose_precision(args.precision, device)
    checkpoint = choose_checkpoint(args)
    print(describe_precision(precision, device))
    if is_split and not args.output_dir and checkpoint.path.is_file():
        folder = checkpoint.path.parent
    make_output_dir(folder)
    if is_split:
        stored = checkpoint.content["args"] if checkpoint.kind == "own" else {}
        args = parse_args(__doc__, argv, stored)
    views = {key: getattr(args, key) for key in ("scales", "flip", "window")}
    predictor = Predictor.from_checkpoint(
        checkpoint, device, precision, args.output_stride, **views
    )
    if is_split:
        return score_split(predictor, Evaluation.of(args), folder, args.save_predictions)
    names = dict(zip(paths, name_outputs(paths, folder), strict=True))
    extras = ["overlay", *(["confidence"] if args.confidence else [])]
    with pixel_limit(args.max_pixels):
        return predict_images(names, folder, predictor, extras)


if __name__ == "__main__":
    run_script(main)
