"""Segment images with SAM, and measure how its masks and DeepLab's classes go together.

    python sam_infer.py                                   # the five images of the report
    python sam_infer.py --split val --limit 100           # numbers from more images
    python sam_infer.py photo.jpg folder/                 # masks of images of your own
    python sam_infer.py --prompts deeplab                 # one mask per object that DeepLab found

Each image leaves in `--output_dir` a picture, `<id>.png`, and its masks, `<id>.npz` (the format is
described in utils/sam/mask_files.py); images with ground truth leave `scores.json`.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from datasets import build_dataset
from datasets.base import IGNORE_INDEX, SegmentationDataset
from datasets.image_files import read_image, save_png
from utils.checkpoint import load_checkpoint
from utils.common.errors import UserError, run_script
from utils.common.files import write_json
from utils.precision import choose_device
from utils.predict.photos import find_images, name_outputs
from utils.predictor import Predictor
from utils.report.image_choice import has_background, load_or_make_picks, read_picks
from utils.run_folder import BEST_FILE
from utils.run_records import best_run, find_runs
from utils.sam.mask_files import Masks, draw_masks, image_checksum, load_masks, save_masks
from utils.sam.mask_maker import SAM_MODELS, MaskMaker, MaskSettings, load_sam, say
from utils.sam.options import parse_args
from utils.sam.regions import RegionScores, component_prompts

COLUMNS = {"deeplab": "DeepLab", "sam_deeplab": "SAM + DeepLab", "oracle": "oracle"}


@dataclasses.dataclass(frozen=True)
class Sample:
    """An image to segment.

    Attributes:
        name: of its files in the output folder.
        load: gives the image, uint8 (3, H, W), and its target, uint8 (H, W) or None.
    """

    name: str
    load: Callable[[], tuple[torch.Tensor, torch.Tensor | None]]


@dataclasses.dataclass(frozen=True)
class DeepLab:
    """What classes come from.

    Attributes:
        predict: uint8 (1, 3, H, W) to classes uint8 (1, H, W), on the device.
        identity: the checkpoint's path and what tells its weights from others.
        first_class: lowest class that is an object.
    """

    predict: Predictor
    identity: dict[str, Any]
    first_class: int


def find_samples(
    args: argparse.Namespace,
) -> tuple[SegmentationDataset | None, str | None, list[Sample]]:
    """The images to segment, and the data set and split that they are from (None for files)."""
    if args.images:
        paths = find_images(args.images)
        names = name_outputs(paths, Path(args.output_dir))
        samples = [
            Sample(name, partial(load_photo, path)) for name, path in zip(names, paths, strict=True)
        ]
        return None, None, samples[: args.limit]
    image_set, ids = args.split, None
    if image_set is None:
        path = Path(args.report_dir) / "picks.json"
        image_set = (read_picks(path) or {}).get("image_set", "train")
        ids = load_or_make_picks(path, args, image_set)["five"]
    dataset = build_dataset(args, image_set)
    places = {name: index for index, name in enumerate(dataset.ids)}
    samples = [
        Sample(name, partial(dataset.__getitem__, places[name])) for name in ids or dataset.ids
    ]
    return dataset, image_set, samples[: args.limit]


def load_photo(path: Path) -> tuple[torch.Tensor, None]:
    """An image that has no ground truth."""
    return read_image(path), None


def load_deeplab(
    args: argparse.Namespace, dataset: SegmentationDataset | None, device: torch.device
) -> DeepLab | None:
    """The DeepLab to compare with or to take prompts from; None where there is no use or none.

    Raises:
        UserError: it is needed but there is none, or it has other classes than the data set.
    """
    if dataset is None and args.prompts == "grid":
        return None
    path = Path(args.ckpt) if args.ckpt else find_checkpoint(args, dataset)
    if path is None:
        missing = f"no run of this data set in {args.runs_dir}: give --ckpt, or train with main.py"
        if args.prompts == "deeplab":
            raise UserError(f"--prompts deeplab: {missing}")
        say(f"{missing}; without it there are no scores")
        return None
    checkpoint = load_checkpoint(path)
    names = list(dataset.class_names) if dataset else checkpoint.class_names
    if dataset and (
        checkpoint.num_classes != dataset.num_classes or checkpoint.class_names not in (None, names)
    ):
        raise UserError(
            f"{path}: was trained on other classes than those of --dataset {args.dataset}: give "
            "the data set that it was trained on, or another --ckpt"
        )
    say(f"DeepLab: {checkpoint.model} from {path}")
    state = {key: checkpoint.content.get(key) for key in ("cur_itrs", "best_score")}
    return DeepLab(
        predict=Predictor.from_checkpoint(checkpoint, device, args.precision, args.output_stride),
        identity={"checkpoint": str(path), **state},
        first_class=int(names is None or has_background(names)),
    )


def find_checkpoint(args: argparse.Namespace, dataset: SegmentationDataset | None) -> Path | None:
    """The weights of the data set's best run; for images of no data set those of the newest run."""
    if dataset is None:
        files = Path(args.runs_dir).glob(f"*/{BEST_FILE}")
        return max(files, key=lambda file: file.stat().st_mtime, default=None)
    runs, notes = find_runs(Path(args.runs_dir), args.dataset, dataset)
    for note in notes:
        say(note)
    run = best_run(runs)
    return run.best_checkpoint if run else None


def describe_settings(args: argparse.Namespace, deeplab: DeepLab | None) -> dict[str, Any]:
    """What decides on the masks; it is stored with them."""
    names = [field.name for field in dataclasses.fields(MaskSettings)]
    settings = {
        "sam_model": args.sam_model,
        "sam_checkpoint": Path(args.sam_checkpoint or SAM_MODELS[args.sam_model].file).name,
        "prompts": args.prompts,
        **{name: getattr(args, name) for name in names if name != "points_per_batch"},
    }
    if args.prompts == "deeplab":
        del settings["points_per_side"]
        settings["deeplab"] = deeplab.identity
    return settings


def is_done(sample: Sample, folder: Path, made_with: dict[str, Any]) -> bool:
    """Whether the sample's files are there, whole and of these settings.

    Raises:
        UserError: they are of other settings or of another image.
    """
    path = folder / f"{sample.name}.npz"
    if not path.exists() or not (folder / f"{sample.name}.png").exists():
        return False
    try:
        found = load_masks(path).settings
    except UserError as error:
        say(f"{error}; making it again")
        return False
    remedy = "--overwrite makes them again, --output_dir DIR puts them elsewhere"
    before = found.get("made_with", {})
    other = [name for name in {**before, **made_with} if before.get(name) != made_with.get(name)]
    if other:
        raise UserError(f"{path}: holds masks made with another {' and '.join(other)}: {remedy}")
    if found.get("image") != image_checksum(sample.load()[0]):
        raise UserError(f"{path}: holds masks of another image of this name: {remedy}")
    return True


def make_files(
    sample: Sample,
    image: torch.Tensor,
    maker: Callable[[], Masks],
    folder: Path,
    made_with: dict[str, Any],
) -> Masks:
    """Make the masks of an image and leave its two files; the picture comes first."""
    start = time.perf_counter()
    masks = maker()
    masks.settings = {
        "made_with": made_with,
        "image": image_checksum(image),
        "seconds": time.perf_counter() - start,
    }
    if not len(masks):
        say(f"{sample.name}: SAM found no mask in it")
    save_png(folder / f"{sample.name}.png", draw_masks(image, masks))
    save_masks(folder / f"{sample.name}.npz", masks)
    return masks


def process(
    samples: list[Sample],
    todo: set[str],
    maker: MaskMaker | None,
    deeplab: DeepLab | None,
    scores: RegionScores | None,
    args: argparse.Namespace,
    device: torch.device,
) -> list[float]:
    """Make or read the masks of every sample and score them; returns the seconds each took."""
    folder, made_with = Path(args.output_dir), describe_settings(args, deeplab)
    seconds = []
    for sample in tqdm(samples, "SAM", disable=None):
        image, target = sample.load()
        pred = deeplab.predict(image[None].to(device))[0].cpu() if deeplab else None
        if sample.name in todo:
            prompts = None
            if args.prompts == "deeplab":
                prompts = component_prompts(pred, deeplab.first_class)
            masks = make_files(sample, image, partial(maker, image, prompts), folder, made_with)
        else:
            masks = load_masks(folder / f"{sample.name}.npz")
        seconds.append(masks.settings["seconds"])
        if scores is not None:
            scores.update(target, masks, pred)
    return seconds


def format_comparison(scores: dict[str, Any]) -> str:
    """The scores as a table in percent, for people."""
    rows: list[tuple[str, list[float | None]]] = []
    if "deeplab" in scores:
        for name in scores["deeplab"]["class_iou"]:
            rows.append((name, [scores[key]["class_iou"][name] for key in COLUMNS]))
        rows.append(("mIoU", [scores[key]["miou"] for key in COLUMNS]))
        for width, mious in scores["borders"].items():
            rows.append((f"mIoU, {width} px at borders", [mious.get(key) for key in COLUMNS]))
    lines = []
    if rows:
        width = max(len(name) for name, _ in rows)
        lines = [f"IoU by class, in percent:\n  {'':<{width}}  " + "  ".join(COLUMNS.values())]
        for name, values in rows:
            cells = [
                f"{'-' if value is None else format(100 * value, '.2f'):>{len(head)}}"
                for value, head in zip(values, COLUMNS.values(), strict=True)
            ]
            lines.append(f"  {name:<{width}}  " + "  ".join(cells))
    per_region = scores["masks_per_region"]
    lines.append(
        f"{scores['masks_per_image']:.1f} masks per image"
        + (f", {per_region:.2f} per ground-truth region" if per_region is not None else "")
        + f"; {scores['seconds_per_image']:.1f} s per image"
    )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Segment the images that the flags name, and score the masks where there is ground truth."""
    args = parse_args(__doc__, argv)
    device = choose_device(args.device)
    dataset, image_set, samples = find_samples(args)
    deeplab = load_deeplab(args, dataset, device)
    folder, made_with = Path(args.output_dir), describe_settings(args, deeplab)
    todo = {s.name for s in samples if args.overwrite or not is_done(s, folder, made_with)}
    if len(todo) < len(samples):
        say(f"{len(samples) - len(todo)} of {len(samples)} images are done: not done again")
    maker = None
    if todo:
        settings = MaskSettings(
            **{field.name: getattr(args, field.name) for field in dataclasses.fields(MaskSettings)}
        )
        sam = load_sam(args.sam_model, args.sam_checkpoint)
        maker = MaskMaker(sam, settings, device, args.precision)
    scores = RegionScores(dataset.num_classes, IGNORE_INDEX) if dataset else None
    seconds = process(samples, todo, maker, deeplab, scores, args, device)
    print(f"masks of {len(samples)} images in {folder}")
    if dataset is None:
        print("images given as files have no ground truth: no scores")
        return
    result = {
        "dataset": args.dataset,
        "image_set": image_set,
        "images": [sample.name for sample in samples],
        "checkpoint": deeplab.identity["checkpoint"] if deeplab else None,
        **scores.compute(dataset.class_names),
        "seconds_per_image": sum(seconds) / len(seconds),
        "sam": made_with,
    }
    write_json(folder / "scores.json", result)
    print(f"scores on {len(samples)} images of {args.dataset} {image_set}")
    print(format_comparison(result))


if __name__ == "__main__":
    run_script(main)
