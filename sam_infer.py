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
from utils.checkpoint import Checkpoint, load_checkpoint
from utils.common.errors import UserError, run_script
from utils.common.files import write_json
from utils.common.progress import progress, say
from utils.precision import choose_device, choose_precision, out_of_memory_explained
from utils.predict.photos import find_images, name_outputs
from utils.predictor import Predictor
from utils.report.image_choice import load_or_make_picks, read_picks
from utils.report.options import parse_wishes
from utils.run_records import default_checkpoint
from utils.sam.mask_files import Masks, draw_masks, is_done, load_masks, save_masks
from utils.sam.options import mask_settings, parse_args
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
    """What looks at each image.

    Attributes:
        device: where.
        deeplab: gives classes; None for masks alone.
        first_class: the lowest class whose regions SAM is asked about; None for a grid of points.
        sam: makes masks; None if all are there already.
    """

    device: torch.device
    deeplab: Predictor | None = None
    first_class: int | None = None
    sam: "MaskMaker | None" = None

    def classify(self, image: torch.Tensor) -> torch.Tensor | None:
        """DeepLab's classes of an image, uint8 (H, W)."""
        return torch.from_numpy(self.deeplab.predict_image(image)) if self.deeplab else None


def find_photos(words: Sequence[str], output_dir: Path) -> dict[str, Path]:
    """The images that a command line names, by the names of their files.

    The pictures that an earlier run left in `output_dir` are left out, which is said.
    """
    results = {path.with_suffix(".png") for path in output_dir.resolve().glob("*.npz")}
    found = find_images(words)
    paths = [path for path in found if path.resolve() not in results]
    if len(paths) < len(found):
        say(f"{output_dir}: leaves out {len(found) - len(paths)} x result of an earlier run")
    return dict(zip(name_outputs(paths, output_dir), paths, strict=True))


def find_samples(
    source: DataSource, image_set: str | None, picks: Path, wishes: Sequence[str] | None
) -> tuple[SegmentationDataset, str, dict[str, Path]]:
    """A data set, the name of its split, and the images to segment, by id.

    Args:
        source: names the data set.
        image_set: the split to segment; None for the report's five images.
        picks: the file that holds these, or will.
        wishes: the words of `--pick`.
    """
    ids = None
    if image_set is None:
        image_set = (read_picks(picks) or {}).get("image_set", "train")
        fixed = None if wishes is None else parse_wishes(wishes)
        ids = load_or_make_picks(picks, source, image_set, fixed=fixed)["five"]
    dataset = build_dataset(source, image_set)
    if ids == []:
        raise UserError(f"{dataset.folder}: no mask of {image_set} holds an object: give --split")
    paths = dict(zip(dataset.ids, dataset.image_paths, strict=True))
    return dataset, image_set, {name: paths[name] for name in ids or dataset.ids}


def load_deeplab(
    path: Path | None, runs_dir: Path, source: DataSource, dataset: SegmentationDataset | None
) -> Checkpoint | None:
    """The checkpoint of a DeepLab: that in `path`, else of the best run; None if there is none.

    Raises:
        UserError: it cannot be read, or has other classes than the data set.
    """
    reason = "--ckpt"
    if path is None:
        path, reason = default_checkpoint(runs_dir, source.dataset if dataset else None, dataset)
    if path is None:
        say(f"{reason}: give --ckpt, or train with main.py; without it there are no scores")
        return None
    checkpoint = load_checkpoint(path)
    if dataset:
        check_classes(checkpoint, dataset, source.dataset)
    say(f"DeepLab: {checkpoint.model} from {path} ({reason})")
    return checkpoint


def identify(deeplab: Predictor) -> dict[str, Any]:
    """What tells one DeepLab from another in the settings of masks."""
    path = deeplab.checkpoint.path  # no file if it is "torchvision"
    checksum = file_checksum(path) if path.is_file() else str(path)
    return {"deeplab_sha256": checksum, "output_stride": deeplab.output_stride}


def plan(
    paths: Mapping[str, Path], output_dir: Path, made_with: Mapping[str, Any], overwrite: bool
) -> list[Job]:
    """What is to be done for each image, by its name."""
    jobs = []
    for name, path in paths.items():
        try:
            checksum = zlib.crc32(path.read_bytes())
        except OSError:
            checksum = None  # reading the image will say why
        settings = {**made_with, "image_crc32": checksum}
        masks = output_dir / f"{name}.npz"
        jobs.append(Job(name, path, masks, settings, not overwrite and is_done(masks, settings)))
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
            with out_of_memory_explained(models.device, remedy):
                image, target = load(job, dataset)
                pred = models.classify(image)
                masks = load_masks(job.masks) if job.is_done else segment(job, image, pred, models)
                if target is not None:
                    scores.update(target, masks, pred)
            seconds[job.name] = masks.settings["seconds"]
        except (UserError, OSError) as error:
            failures.append(f"{job.name}: {error}")
    return scores, seconds, failures


def load(job: Job, dataset: SegmentationDataset | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The image, uint8 (3, H, W), and its target, uint8 (H, W); a file has none."""
    return dataset[dataset.ids.index(job.name)] if dataset else (read_image(job.image), None)


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
    models, settings = Models(choose_device(args.device)), mask_settings(args)
    choose_precision(args.precision, models.device)  # refused before all work
    source, output_dir, dataset, image_set = DataSource.of(args), Path(args.output_dir), None, ""
    if args.images:
        paths = find_photos(args.images, output_dir)
    else:
        picks = Path(args.report_dir) / "picks.json"
        dataset, image_set, paths = find_samples(source, args.split, picks, args.pick)
    paths = dict(list(paths.items())[: args.limit])
    weights = find_weights(args.sam_model, args.sam_checkpoint)

    made_with = {"sam_model": args.sam_model, "sam_sha256": file_checksum(weights)}
    made_with |= {"prompts": args.prompts, **settings}
    if dataset or args.prompts == "deeplab":
        checkpoint = load_deeplab(args.ckpt, Path(args.runs_dir), source, dataset)
        how = models.device, args.precision, args.output_stride
        models.deeplab = Predictor.from_checkpoint(checkpoint, *how) if checkpoint else None
    if args.prompts == "deeplab":
        if models.deeplab is None:
            raise UserError("--prompts deeplab: needs one: give --ckpt, or train with main.py")
        names = dataset.class_names if dataset else models.deeplab.checkpoint.class_names
        models.first_class = int(names is None or has_background(names))
        made_with |= identify(models.deeplab)

    jobs = plan(paths, output_dir, made_with, args.overwrite)
    done = sum(job.is_done for job in jobs)
    if done:
        say(f"{done} of {len(jobs)} images are done: not done again")
    if done < len(jobs):
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
