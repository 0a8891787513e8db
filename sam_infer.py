"""Segment images with SAM, and measure how its masks and DeepLab's classes go together.

    python sam_infer.py                                   # the five images of the report
    python sam_infer.py --split val --limit 100           # numbers from more images
    python sam_infer.py photo.jpg folder/                 # masks of images of your own
    python sam_infer.py --prompts deeplab                 # one mask per object that DeepLab found

Each image leaves in `--output_dir` a picture, `<id>.png`, and its masks, `<id>.npz` (the format is
described in utils/sam/mask_files.py); images with ground truth leave `scores.json`. An image that
cannot be done is listed at the end, and the exit status is 1.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from datasets import DataSource, build_dataset
from datasets.base import SegmentationDataset
from datasets.colours import has_background
from datasets.image_files import read_image, save_png
from utils.checkpoint import first_difference, load_checkpoint
from utils.common.errors import UserError, run_script
from utils.common.files import write_json
from utils.common.progress import progress
from utils.precision import choose_device, choose_precision, is_out_of_memory
from utils.predict.photos import find_images, name_outputs
from utils.predictor import Predictor
from utils.report.image_choice import load_or_make_picks, read_picks
from utils.run_records import best_run, default_checkpoint, find_runs
from utils.sam.mask_files import Masks, draw_masks, image_checksum, load_masks, save_masks
from utils.sam.mask_maker import MaskMaker, file_checksum, find_weights, load_sam, say
from utils.sam.options import mask_settings, parse_args
from utils.sam.region_scores import RegionScores, format_comparison
from utils.sam.regions import component_prompts

# Image uint8 (3, H, W), and target uint8 (H, W) or None.
Load = Callable[[], tuple[torch.Tensor, torch.Tensor | None]]
REMEDY = "--overwrite makes them again, --output_dir DIR puts them elsewhere"


def find_samples(
    args: argparse.Namespace,
) -> tuple[SegmentationDataset | None, str, dict[str, Load]]:
    """Data set and split (none for files), and what loads each image, by the name of its files."""
    if args.images:
        paths = leave_out_results(find_images(args.images), Path(args.output_dir))
        names = name_outputs(paths, Path(args.output_dir))
        photos = [(n, partial(load_photo, path)) for n, path in zip(names, paths, strict=True)]
        return None, "", dict(photos[: args.limit])
    image_set, ids = args.split, None
    if image_set is None:
        path = Path(args.report_dir) / "picks.json"
        image_set = (read_picks(path) or {}).get("image_set", "train")
        ids = load_or_make_picks(path, DataSource.of(args), image_set)["five"]
    dataset = build_dataset(DataSource.of(args), image_set)
    places = {name: index for index, name in enumerate(dataset.ids)}
    wanted = (dataset.ids if ids is None else ids)[: args.limit]
    if not wanted:
        raise UserError(f"{dataset.folder}: no mask of {image_set} holds an object: give --split")
    return dataset, image_set, {n: partial(dataset.__getitem__, places[n]) for n in wanted}


def leave_out_results(paths: list[Path], output_dir: Path) -> list[Path]:
    """The images without the pictures that an earlier run left in `output_dir`; says so."""
    folder = output_dir.resolve()
    kept = [
        path
        for path in paths
        if path.suffix != ".png"
        or path.resolve().parent != folder
        or not os.path.exists(path.with_suffix(".npz"))
    ]
    if len(kept) < len(paths):
        say(f"{output_dir}: leaves out {len(paths) - len(kept)} x result of an earlier run")
    return kept


def load_photo(path: Path) -> tuple[torch.Tensor, None]:
    """An image that has no ground truth."""
    return read_image(path), None


def load_deeplab(
    args: argparse.Namespace, dataset: SegmentationDataset | None, device: torch.device
) -> Predictor | None:
    """The DeepLab to compare with or to take prompts from; None where there is no use or none.

    Raises:
        UserError: it is needed but there is none, or it has other classes than the data set.
    """
    if dataset is None and args.prompts == "grid":
        return None
    path, reason = (args.ckpt, "--ckpt") if args.ckpt else find_checkpoint(args, dataset)
    if path is None:
        if args.prompts == "deeplab":
            raise UserError(f"--prompts deeplab: {reason}: give --ckpt, or train with main.py")
        say(f"{reason}: give --ckpt, or train with main.py; without it there are no scores")
        return None
    checkpoint = load_checkpoint(path)
    if dataset and (difference := first_difference(checkpoint, dataset.class_names)):
        raise UserError(
            f"{path}: was trained on other classes than those of --dataset {args.dataset} "
            f"({difference}): give the data set that it was trained on, or another --ckpt"
        )
    say(f"DeepLab: {checkpoint.model} from {path} ({reason})")
    return Predictor.from_checkpoint(checkpoint, device, args.precision, args.output_stride)


def find_checkpoint(
    args: argparse.Namespace, dataset: SegmentationDataset | None
) -> tuple[Path | None, str]:
    """The weights of the data set's best run, and why these; for other images as `predict.py`."""
    if dataset is None:
        return default_checkpoint(Path(args.runs_dir))
    runs, notes = find_runs(Path(args.runs_dir), args.dataset, dataset)
    for note in notes:
        say(note)
    run = best_run(runs)
    if run is None:
        return None, f"no run of this data set in {args.runs_dir}"
    return run.best_checkpoint, "the data set's best run; --ckpt FILE takes another"


class Work:
    """What is done to each image, and what it leaves.

    Attributes:
        folder: of the results.
        made_with: what decides on the masks; it is stored with them.
        maker: makes masks; None until some are needed.
        scores: of the masks, if there is ground truth.
        seconds: that the masks of each image took, by its name.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        dataset: SegmentationDataset | None,
        predictor: Predictor | None,
        sam_weights: Path,
    ) -> None:
        self.folder = Path(args.output_dir)
        self.predictor = predictor
        self.maker: MaskMaker | None = None
        self.scores = RegionScores(dataset.num_classes) if dataset else None
        self.seconds: dict[str, float] = {}
        self.made_with = {"sam_model": args.sam_model, "sam_sha256": file_checksum(sam_weights)}
        self.made_with |= {"prompts": args.prompts, **mask_settings(args)}
        del self.made_with["points_per_batch"]  # changes memory and speed alone
        self.prompts_from: int | None = None  # the lowest class to prompt for; None: a grid
        if predictor and args.prompts == "deeplab":
            checkpoint = predictor.checkpoint
            path = checkpoint.path  # no file if it is "torchvision"
            self.made_with["deeplab_sha256"] = file_checksum(path) if path.is_file() else str(path)
            self.made_with["output_stride"] = predictor.output_stride
            del self.made_with["points_per_side"]
            names = dataset.class_names if dataset else checkpoint.class_names
            self.prompts_from = int(names is None or has_background(names))

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
        if is_done:
            path = self.folder / f"{name}.npz"
            masks = load_masks(path)
            if masks.settings.get("image") != image_checksum(image):
                raise UserError(f"{path}: holds masks of another image of this name: {REMEDY}")
        else:
            masks = self.make(name, image, pred)
        if self.scores and target is not None:
            self.scores.update(target, masks, pred)
        self.seconds[name] = masks.settings["seconds"]

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


def do_all(work: Work, samples: dict[str, Load], done: set[str]) -> list[str]:
    """Each image by itself; returns one line for each that could not be done.

    Not `utils.engine.evaluate`: there an image that cannot be read ends the loop.
    """
    failures = []
    for name, load in progress(samples.items(), "SAM"):
        try:
            work.do(name, load, name in done)
        except (UserError, OSError) as error:
            failures.append(f"{name}: {error}")
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            torch.cuda.empty_cache()
            failures.append(f"{name}: out of memory: give a smaller image")
    return failures


def report(work: Work, args: argparse.Namespace, image_set: str, regions: dict[str, Any]) -> None:
    """Print the scores of the masks that were made or read, and write `scores.json`."""
    images = list(work.seconds)
    scores = {
        "dataset": args.dataset,
        "image_set": image_set,
        "images": images,
        "checkpoint": str(work.predictor.checkpoint.path) if work.predictor else None,
        **regions,
        "seconds_per_image": sum(work.seconds.values()) / len(images),
        "sam": work.made_with,
    }
    write_json(work.folder / "scores.json", scores)
    print(f"scores on {len(images)} images of {args.dataset} {image_set}")
    print(format_comparison(scores))


def main(argv: list[str] | None = None) -> int:
    """Segment the images that the flags name, score the masks; returns the exit status."""
    args = parse_args(__doc__, argv)
    device = choose_device(args.device)
    choose_precision(args.precision, device)  # what the device lacks is refused before all work
    weights = find_weights(args.sam_model, args.sam_checkpoint)
    dataset, image_set, samples = find_samples(args)
    work = Work(args, dataset, load_deeplab(args, dataset, device), weights)
    done = set() if args.overwrite else set(filter(work.is_done, samples))
    if done:
        say(f"{len(done)} of {len(samples)} images are done: not done again")
    if len(done) < len(samples):
        sam = load_sam(args.sam_model, weights)
        work.maker = MaskMaker(sam, mask_settings(args), device, args.precision)
    failures = do_all(work, samples, done)
    print(f"masks of {len(work.seconds)} images in {work.folder}")
    if dataset is None:
        print("images given as files have no ground truth: no scores")
    elif work.scores and work.seconds:
        report(work, args, image_set, work.scores.compute(dataset.class_names))
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    run_script(main)
