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
import contextlib
import dataclasses
import sys
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from datasets import DataSource, build_dataset
from datasets.base import SegmentationDataset
from datasets.colours import has_background
from datasets.image_files import read_image, save_png
from utils.checkpoint import load_checkpoint
from utils.common.errors import UserError, run_script
from utils.common.files import write_json
from utils.common.progress import progress, say
from utils.precision import choose_device, choose_precision, out_of_memory_explained
from utils.predict.photos import find_images, name_outputs
from utils.predictor import Predictor
from utils.report.image_choice import load_or_make_picks
from utils.report.options import parse_wishes
from utils.run_records import default_checkpoint
from utils.sam.mask_files import Masks, draw_masks, is_done, load_masks, save_masks
from utils.sam.options import MASK_FLAGS, parse_args
from utils.sam.region_scores import RegionScores, format_comparison
from utils.sam.regions import component_prompts
from utils.sam.weights import file_checksum, find_weights, load_sam
from utils.scores import check_classes

if TYPE_CHECKING:  # it needs the package segment_anything
    from utils.sam.mask_maker import MaskMaker


@dataclasses.dataclass
class Job:
    """An image, the file of its masks, what decides on them, and whether they are there."""

    name: str
    image: Path
    masks: Path
    made_with: dict[str, Any]
    is_done: bool


@dataclasses.dataclass
class Models:
    """What looks at each image."""

    device: torch.device
    deeplab: Predictor | None = None  # gives classes; None for masks alone
    first_class: int | None = None  # the lowest whose regions SAM is asked about; None: a grid
    sam: "MaskMaker | None" = None  # None if all masks are there already


def find_samples(
    args: argparse.Namespace, source: DataSource
) -> tuple[SegmentationDataset, str, dict[str, Path]]:
    """The data set, the name of its split, and the images to segment, by id."""
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
    say(f"DeepLab: {checkpoint.model} from {path} ({reason})")
    return Predictor.from_checkpoint(checkpoint, args.device, args.precision, args.output_stride)


def plan(
    paths: Mapping[str, Path], output_dir: Path, made_with: Mapping[str, Any], overwrite: bool
) -> list[Job]:
    """What is to be done for each image, by its name."""
    jobs = []
    for name, path in paths.items():
        masks, settings = output_dir / f"{name}.npz", dict(made_with)
        with contextlib.suppress(OSError):  # reading the image will say why
            settings["image_crc32"] = zlib.crc32(path.read_bytes())
        jobs.append(Job(name, path, masks, settings, not overwrite and is_done(masks, settings)))
    if done := sum(job.is_done for job in jobs):
        say(f"{done} of {len(jobs)} images are done: not done again")
    return jobs


def segment_all(
    jobs: Sequence[Job], dataset: SegmentationDataset | None, models: Models
) -> tuple[RegionScores, dict[str, float], list[str]]:
    """Do each image by itself; not `utils.engine.evaluate`, which ends where one cannot be read.

    Returns:
        The scores of images with ground truth; seconds by image; and one line for each that could
        not be done.
    """
    scores = RegionScores(dataset.num_classes if dataset else 0)
    seconds, failures = {}, []
    remedy = "take a smaller --sam_model, --points_per_batch or image"
    for job in progress(jobs, "SAM"):
        try:
            with out_of_memory_explained(remedy):
                image, target = read_image(job.image), None
                if dataset:
                    image, target = dataset[dataset.ids.index(job.name)]
                pred = None
                if models.deeplab:
                    pred = torch.from_numpy(models.deeplab.predict_image(image))
                masks = load_masks(job.masks) if job.is_done else segment(job, image, pred, models)
                if target is not None:
                    scores.update(target, masks, pred)
            seconds[job.name] = masks.settings["seconds"]
        except (UserError, OSError) as error:
            failures.append(f"{job.name}: {error}")
    return scores, seconds, failures


def segment(job: Job, image: torch.Tensor, pred: torch.Tensor | None, models: Models) -> Masks:
    """Make the masks of an image, and leave the two files; the picture comes first."""
    assert models.sam is not None  # it is there as soon as an image is not done
    start, prompts = time.perf_counter(), None
    if pred is not None and models.first_class is not None:
        prompts = component_prompts(pred, models.first_class)
    masks = models.sam(image, prompts)
    masks.settings = {"made_with": job.made_with, "seconds": time.perf_counter() - start}
    if not len(masks):
        say(f"{job.name}: SAM found no mask in it")
    save_png(job.masks.with_suffix(".png"), draw_masks(image, masks))
    save_masks(job.masks, masks)
    return masks


def main(argv: list[str] | None = None) -> int:
    """Segment the images that the flags name, score the masks; returns the exit status."""
    args = parse_args(__doc__, argv)
    models = Models(choose_device(args.device))
    choose_precision(args.precision, models.device)  # refused before all work
    source, output_dir, dataset, image_set = DataSource.of(args), Path(args.output_dir), None, ""
    if args.images:
        images = find_images(args.images, output_dir)
        paths = dict(zip(name_outputs(images, output_dir), images, strict=True))
    else:
        dataset, image_set, paths = find_samples(args, source)
    paths = dict(list(paths.items())[: args.limit])
    weights = find_weights(args.sam_model, args.sam_checkpoint)

    settings = {name: getattr(args, name) for name in MASK_FLAGS}
    made_with = {"sam_model": args.sam_model, "sam_sha256": file_checksum(weights)}
    made_with |= {"prompts": args.prompts, **settings}
    if dataset or args.prompts == "deeplab":
        models.deeplab = load_deeplab(args, source, dataset)
    if models.deeplab and args.prompts == "deeplab":
        file = models.deeplab.checkpoint.path
        checksum = file_checksum(file) if file.is_file() else str(file)  # "torchvision" is none
        made_with |= {"deeplab_sha256": checksum, "output_stride": models.deeplab.output_stride}
        names = dataset.class_names if dataset else models.deeplab.checkpoint.class_names
        models.first_class = int(names is None or has_background(names))

    jobs = plan(paths, output_dir, made_with, args.overwrite)
    if not all(job.is_done for job in jobs):
        from utils.sam.mask_maker import MaskMaker

        sam, batch = load_sam(args.sam_model, weights), args.points_per_batch
        models.sam = MaskMaker(sam, settings, batch, models.device, args.precision)
    scores, seconds, failures = segment_all(jobs, dataset, models)
    print(f"masks of {len(seconds)} images in {output_dir}")
    if dataset is None:
        print("images given as files have no ground truth: no scores")
    elif seconds:
        found = {
            "dataset": args.dataset,
            "image_set": image_set,
            "images": list(seconds),
            "masks": dict(zip(seconds, scores.mask_counts, strict=True)),
            "checkpoint": str(models.deeplab.checkpoint.path) if models.deeplab else None,
            **scores.compute(dataset.class_names, is_split=len(seconds) == len(dataset)),
            "seconds_per_image": sum(seconds.values()) / len(seconds),
            "sam": made_with,
        }
        write_json(output_dir / "scores.json", found)
        print(f"scores on {len(seconds)} images of {args.dataset} {image_set}")
        print(format_comparison(found))
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    run_script(main)
