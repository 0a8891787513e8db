"""The data sets that `--dataset` can name."""

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

from datasets.base import SegmentationDataset, Transform
from datasets.cityscapes import Cityscapes
from datasets.class_counts import class_statistics, present_and_absent
from datasets.custom import CustomSegmentation
from datasets.shapes import ShapesSegmentation
from datasets.transforms import ShortSideCenterCrop
from datasets.voc import VOCSegmentation
from utils.common.errors import UserError
from utils.common.flags import SEED, Parser, real, whole
from utils.common.progress import say_once

DATASETS: dict[str, type[SegmentationDataset]] = {
    "voc": VOCSegmentation,
    "custom": CustomSegmentation,
    "cityscapes": Cityscapes,
    "shapes": ShapesSegmentation,
}


@dataclasses.dataclass(frozen=True)
class DataSource:
    """Where a data set is from: the flags of `add_data_args`, under their names."""

    dataset: str = "voc"
    data_root: str = "data"
    no_download: bool = False
    voc_archive: str | None = None
    val_fraction: float = 0.2
    split_seed: int = 0
    void_value: int | None = None
    object_value: int | None = None

    @classmethod
    def of(cls, args: argparse.Namespace) -> "DataSource":
        """What the flags of a command line say."""
        return cls(**{field.name: getattr(args, field.name) for field in dataclasses.fields(cls)})

    def flags(self) -> list[str]:
        """The words that name it on a command line: all that are not the default."""
        words = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                words += [f"--{field.name}", *([] if value is True else [str(value)])]
        return words


CUSTOM_FLAGS = ("val_fraction", "split_seed", "void_value", "object_value")


def build_dataset(
    source: DataSource, image_set: str, transform: Transform | None = None, **options: bool
) -> SegmentationDataset:
    """Build a split of the data set that `source` names; for `options` see `SegmentationDataset`.

    Raises:
        UserError: it is not there, or not as it should be.
    """
    own: dict[str, Any] = {}
    if source.dataset == "voc":
        own = {"download": not source.no_download, "archive": source.voc_archive}
    elif source.dataset == "custom":
        own = {name: getattr(source, name) for name in CUSTOM_FLAGS}
    build: Callable[..., SegmentationDataset] = DATASETS[source.dataset]
    return build(source.data_root, image_set, transform=transform, **own, **options)


def build_val_set(
    source: DataSource, image_set: str, crop: int | None = None
) -> tuple[SegmentationDataset, list[tuple[int, int]]]:
    """What an evaluation sees, and (height, width) of each sample.

    It sees whole images, or `--crop_val`'s centre squares of side `crop`.
    """
    dataset = build_dataset(source, image_set, ShortSideCenterCrop(crop) if crop else None)
    return dataset, [(crop, crop)] * len(dataset) if crop else dataset.image_sizes()


def check_training_data(train_set: SegmentationDataset, val_set: SegmentationDataset) -> None:
    """Say what makes scores say less than they seem to; refuse what makes them meaningless.

    Raises:
        UserError: a mask is not as it should be, or a set holds fewer than two classes.
    """
    for name, dataset in (("training", train_set), ("validation", val_set)):
        pixel_counts = class_statistics(dataset).pixel_counts
        present, absent = present_and_absent(pixel_counts, dataset.class_names)
        if len(present) < 2:
            raise UserError(
                f"{dataset.folder}, {name} set: every pixel is "
                f"{' or '.join([*present, 'void (255)'])}, and nothing can be learnt or measured "
                "with fewer than two classes: check that the masks hold the indices of the classes "
                "(if 255 is the second one: save 1 for it, or say --object_value 255)"
            )
        if absent:
            say_once(f"note: classes without a pixel in the {name} set: {', '.join(absent)}")
    shared = set(train_set.ids) & set(val_set.ids)
    if shared and train_set.folder == val_set.folder:
        say_once(
            f"note: {len(shared)} of {len(val_set)} validation images, such as {min(shared)}, are "
            "in the training set as well: scores on them say little about others"
        )


DATA_FLAGS = {field.name for field in dataclasses.fields(DataSource)}


def add_data_args(parser: Parser) -> argparse._ArgumentGroup:
    """Add the flags that name a data set; every script has the same."""
    parser.needs |= dict.fromkeys(("no_download", "voc_archive"), ("dataset", "voc"))
    parser.needs |= dict.fromkeys(CUSTOM_FLAGS, ("dataset", "custom"))
    group = parser.add_argument_group("data")
    add = group.add_argument
    add("--dataset", choices=list(DATASETS), default="voc", help="data set")
    add("--data_root", default="data", help="folder of the data (custom: of the data set itself)")
    add("--no_download", action="store_true", help="never download VOC; say that it is missing")
    add("--voc_archive", help="VOCtrainval_11-May-2012.tar on disk, in place of a download")
    custom = "custom data without ImageSets/"
    text = f"{custom}: share of val"
    add("--val_fraction", type=real(0.0001, 0.9999), default=0.2, help=text)
    add("--split_seed", type=SEED, default=0, help=f"{custom}: seed of the split")
    text = "custom masks of indices: what they hold for void besides 255"
    add("--void_value", type=whole(0, 254), metavar="N", help=text)
    text = "custom masks of two classes: what they hold for the second in place of 1, such as 255"
    add("--object_value", type=whole(0, 255), metavar="N", help=text)
    return group
