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
from functools import partial
from pathlib import Path
from typing import Any

import torch

from datasets import build_dataset
from datasets.base import SegmentationDataset
from datasets.image_files import read_image
from utils.checkpoint import first_difference, load_checkpoint
from utils.common.errors import UserError, run_script
from utils.common.files import write_json
from utils.common.progress import progress
from utils.precision import choose_device, is_out_of_memory
from utils.predict.photos import find_images, name_outputs
from utils.predictor import Predictor
from utils.report.image_choice import has_background, load_or_make_picks, read_picks
from utils.run_records import best_run, default_checkpoint, find_runs
from utils.sam.mask_maker import MaskMaker, file_checksum, find_weights, load_sam, say
from utils.sam.options import mask_settings, parse_args
from utils.sam.region_scores import RegionScores, format_comparison
from utils.sam.work import Load, Work


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
        ids = load_or_make_picks(path, args, image_set)["five"]
    dataset = build_dataset(args, image_set)
    places = {name: index for index, name in enumerate(dataset.ids)}
    wanted = (ids or dataset.ids)[: args.limit]
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


def build_work(
    args: argparse.Namespace,
    dataset: SegmentationDataset | None,
    predictor: Predictor | None,
    weights: Path,
) -> Work:
    """Everything but SAM itself; `weights` are its file."""
    made_with = {"sam_model": args.sam_model, "sam_sha256": file_checksum(weights)}
    made_with |= {"prompts": args.prompts, **mask_settings(args)}
    del made_with["points_per_batch"]  # changes memory and speed alone
    prompts_from = None
    checkpoint = predictor.checkpoint if predictor else None
    if checkpoint and args.prompts == "deeplab":
        made_with["deeplab_sha256"] = file_checksum(checkpoint.path)
        made_with["output_stride"] = args.output_stride or checkpoint.output_stride
        del made_with["points_per_side"]
        names = dataset.class_names if dataset else checkpoint.class_names
        prompts_from = int(names is None or has_background(names))
    scores = RegionScores(dataset.num_classes) if dataset else None
    return Work(Path(args.output_dir), made_with, predictor, prompts_from, scores)


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
    checkpoint = work.predictor.checkpoint if work.predictor else None
    scores = {
        "dataset": args.dataset,
        "image_set": image_set,
        "images": images,
        "checkpoint": str(checkpoint.path) if checkpoint else None,
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
    weights = find_weights(args.sam_model, args.sam_checkpoint)
    dataset, image_set, samples = find_samples(args)
    work = build_work(args, dataset, load_deeplab(args, dataset, device), weights)
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
