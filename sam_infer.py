"""Segment images with SAM, and measure how its masks and DeepLab's classes go together.

    python sam_infer.py                                   # the five images of the report
    python sam_infer.py --pick cat=2007_000528            # a cat of your own among them
    python sam_infer.py --split val --limit 100           # numbers from more images
    python sam_infer.py photo.jpg folder/                 # masks of images of your own
    python sam_infer.py --prompts deeplab                 # one mask per object that DeepLab found

Each image leaves in `--output_dir` a picture, `<id>.png`, and its masks, `<id>.npz` (the format is
described in utils/sam/mask_files.py); images with ground truth leave `scores.json`. An image that
cannot be done is listed at the end, and the exit status is 1.
"""

import utils  # noqa: F401  # before torch, which reads what it sets

# isort: split
import argparse
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from datasets import DataSource, build_dataset
from datasets.base import SegmentationDataset
from datasets.colours import has_background
from datasets.image_files import read_image, save_png
from utils.checkpoint import load_checkpoint
from utils.common.errors import UserError, run_script
from utils.common.files import write_json
from utils.common.progress import progress, say
from utils.precision import choose_device, out_of_memory_explained
from utils.predict.photos import find_images, name_outputs
from utils.predictor import Predictor
from utils.report.image_choice import load_or_make_picks
from utils.report.options import parse_wishes
from utils.run_records import default_checkpoint
from utils.sam.mask_files import Masks, draw_masks, is_done, load_masks, save_masks
from utils.sam.options import MASK_FLAGS, parse_args
from utils.sam.region_scores import RegionScores, format_comparison
from utils.sam.regions import Prompts, component_prompts
from utils.sam.weights import file_checksum, find_weights, load_sam
from utils.scores import check_classes

REMEDY = "take a smaller --sam_model, --points_per_batch or image"


def find_samples(
    args: argparse.Namespace, source: DataSource
) -> tuple[SegmentationDataset | None, str, dict[str, Path]]:
    """The data set and the name of its split, if images have one; the images to segment, by id."""
    if args.images:
        images = find_images(args.images, Path(args.output_dir))
        return None, "", dict(zip(name_outputs(images, Path(args.output_dir)), images, strict=True))
    image_set, ids = args.split, None
    if image_set is None:  # the report's five
        path, fixed = Path(args.report_dir) / "picks.json", parse_wishes(args.pick or ())
        picks = load_or_make_picks(path, source, fixed=fixed)
        image_set, ids = picks["image_set"], picks["five"]
    dataset = build_dataset(source, image_set)
    if ids == []:
        raise UserError(f"{dataset.folder}: no mask of {image_set} holds an object: give --split")
    paths = dict(zip(dataset.ids, dataset.image_paths, strict=True))
    return dataset, image_set, {name: paths[name] for name in ids or dataset.ids}


def load_deeplab(
    args: argparse.Namespace, source: DataSource, dataset: SegmentationDataset | None
) -> Predictor | None:
    """`--ckpt`, or the best run; says which, and why. None if there is none and none is needed.

    Raises:
        UserError: it is needed and not there, or has other classes than the data set.
    """
    if dataset is None and args.prompts == "grid":
        return None
    path, reason = args.ckpt, "--ckpt"
    if path is None:
        name = source.dataset if dataset else None
        path, reason = default_checkpoint(Path(args.runs_dir), name, dataset)
    if path is None:
        advice = f"{reason}: give --ckpt, or train with main.py"
        if args.prompts == "deeplab":
            raise UserError(f"--prompts deeplab: {advice}")
        say(f"{advice}; without it there are no scores")
        return None
    checkpoint = load_checkpoint(path)
    if dataset:
        check_classes(checkpoint, dataset, source.dataset)
        checkpoint.class_names = list(dataset.class_names)  # a foreign file may not say
    say(f"DeepLab: {checkpoint.model} from {path} ({reason})")
    return Predictor.from_checkpoint(checkpoint, args.device, args.precision, args.output_stride)


def settings_of_masks(
    args: argparse.Namespace, weights: Path, deeplab: Predictor | None
) -> dict[str, Any]:
    """What decides on the masks of an image, beside the image."""
    settings = {"sam_model": args.sam_model, "sam_sha256": file_checksum(weights)}
    settings |= {name: getattr(args, name) for name in ("prompts", *MASK_FLAGS)}
    if deeplab and args.prompts == "deeplab":
        file = deeplab.checkpoint.path
        checksum = file_checksum(file) if file.is_file() else str(file)  # "torchvision" is none
        settings |= {"deeplab_sha256": checksum, "output_stride": deeplab.output_stride}
    return settings


def plan(
    args: argparse.Namespace, paths: Mapping[str, Path], settings: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """The images without masks yet, and what decides on those of each: settings and the image.

    Raises:
        UserError: an image has masks of other settings.
    """
    todo = {}
    for name, path in paths.items():
        made_with = {**settings, "image_sha256": file_checksum(path)}
        if args.overwrite or not is_done(Path(args.output_dir, f"{name}.npz"), made_with):
            todo[name] = made_with
    if len(todo) < len(paths):
        say(f"{len(paths) - len(todo)} of {len(paths)} images are done: not done again")
    return todo


def find_prompts(kind: str, deeplab: Predictor | None, pred: torch.Tensor | None) -> Prompts | None:
    """What SAM is asked about: the regions of a prediction (H, W), or None for a grid."""
    if kind == "grid" or deeplab is None or pred is None:
        return None
    return component_prompts(pred, first_class=int(has_background(deeplab.class_names)))


def segment(
    image: torch.Tensor,
    prompts: Prompts | None,
    maker: Callable[[torch.Tensor, Prompts | None], Masks],
    made_with: dict[str, Any],
    path: Path,
) -> None:
    """Make the masks of an image, those of a grid without prompts, and leave the two files."""
    start = time.perf_counter()
    masks = maker(image, prompts)
    masks.settings = {"made_with": made_with, "seconds": time.perf_counter() - start}
    if not len(masks):
        say(f"{path.stem}: SAM found no mask in it")
    save_png(path.with_suffix(".png"), draw_masks(image, masks))
    save_masks(path, masks)  # last: an image with masks is done


def main(argv: list[str] | None = None) -> int:
    """Segment the images that the flags name, score the masks; returns the exit status."""
    args = parse_args(__doc__, argv)
    device, output_dir = choose_device(args.device), Path(args.output_dir)
    source = DataSource.of(args)
    dataset, image_set, paths = find_samples(args, source)
    paths = dict(list(paths.items())[: args.limit])
    weights = find_weights(args.sam_model, args.sam_checkpoint)
    deeplab = load_deeplab(args, source, dataset)
    settings = settings_of_masks(args, weights, deeplab)
    todo = plan(args, paths, settings)
    if todo:
        from utils.sam.mask_maker import MaskMaker

        flags = {name: getattr(args, name) for name in ("points_per_batch", *MASK_FLAGS)}
        maker = MaskMaker(load_sam(args.sam_model, weights), device, args.precision, **flags)

    scores, seconds, failures = RegionScores(dataset.num_classes if dataset else 0), {}, {}
    for name, path in progress(paths.items(), "SAM", len(paths)):
        file = output_dir / f"{name}.npz"
        try:
            with out_of_memory_explained(REMEDY):
                if dataset:
                    image, target = dataset[dataset.ids.index(name)]
                else:
                    image = read_image(path)
                needed = deeplab if dataset or name in todo else None
                pred = torch.from_numpy(needed.predict_image(image)) if needed else None
                if name in todo:
                    prompts = find_prompts(args.prompts, deeplab, pred)
                    segment(image, prompts, maker, todo[name], file)
                masks = load_masks(file)
                if dataset:
                    scores.update(target, masks, pred)
            seconds[name] = masks.settings["seconds"]
        except UserError as error:
            failures[name] = error

    print(f"masks of {len(seconds)} images in {output_dir}")
    if dataset is None:
        print("images given as files have no ground truth: no scores")
    elif seconds:
        found = {
            "dataset": args.dataset,
            "image_set": image_set,
            "images": list(seconds),
            "masks": dict(zip(seconds, scores.mask_counts, strict=True)),
            "checkpoint": str(deeplab.checkpoint.path) if deeplab else None,
            **scores.compute(dataset.class_names, is_split=len(seconds) == len(dataset)),
            "seconds_per_image": sum(seconds.values()) / len(seconds),
            "sam": settings,
        }
        write_json(output_dir / "scores.json", found)
        print(f"scores on {len(seconds)} images of {args.dataset} {image_set}")
        print(format_comparison(found))
    for name, reason in failures.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    run_script(main)
