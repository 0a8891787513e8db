"""The data sets that `--dataset` can name."""

import argparse
from collections.abc import Callable

from datasets.base import SegmentationDataset, Transform
from datasets.custom import CustomSegmentation
from datasets.shapes import ShapesSegmentation
from datasets.voc import VOCSegmentation


def _build_voc(args: argparse.Namespace, image_set: str, **options) -> SegmentationDataset:
    return VOCSegmentation(
        args.data_root,
        image_set,
        download=not args.no_download,
        archive=args.voc_archive,
        **options,
    )


def _build_custom(args: argparse.Namespace, image_set: str, **options) -> SegmentationDataset:
    return CustomSegmentation(
        args.data_root,
        image_set,
        val_fraction=args.val_fraction,
        seed=args.split_seed,
        **options,
    )


def _build_shapes(args: argparse.Namespace, image_set: str, **options) -> SegmentationDataset:
    return ShapesSegmentation(args.data_root, image_set, **options)


DATASETS: dict[str, Callable[..., SegmentationDataset]] = {
    "voc": _build_voc,
    "custom": _build_custom,
    "shapes": _build_shapes,
}


def build_dataset(
    args: argparse.Namespace,
    image_set: str,
    transform: Transform | None = None,
    masks_only: bool = False,
) -> SegmentationDataset:
    """Build the data set that the flags of `add_data_args` name.

    Raises:
        UserError: it is not there, or not as it should be.
    """
    build = DATASETS[args.dataset]
    return build(args, image_set, transform=transform, masks_only=masks_only)


def add_data_args(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the flags that name a data set; every script has the same."""
    group = parser.add_argument_group("data")
    add = group.add_argument
    add("--dataset", choices=list(DATASETS), default="voc", help="data set")
    add("--data_root", default="data", help="folder of the data (custom: of the data set itself)")
    add("--no_download", action="store_true", help="never download VOC; say that it is missing")
    add("--voc_archive", help="VOCtrainval_11-May-2012.tar on disk, in place of a download")
    custom = "custom data without ImageSets/"
    add("--val_fraction", type=float, default=0.2, help=f"{custom}: share of val")
    add("--split_seed", type=int, default=0, help=f"{custom}: seed of the split")
    return group
