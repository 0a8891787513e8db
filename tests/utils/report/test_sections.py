"""The whole report: its parts, and what they say."""

import re

import pytest
import torch

from datasets import DataSource
from datasets.class_counts import ClassStatistics
from datasets.voc import CLASS_NAMES
from tests.utils.report.test_runs import make_run
from utils.report.contents import Findings, Picture
from utils.report.markdown import to_markdown
from utils.report.sections import build_report, read_answers

LOSSES = ("ce", "focal", "ce", "focal", "ce_lovasz", "dice")
PICTURES = ("distribution", "classes", "heads", "curves", "compare", "errors", "confusion")
SETTINGS = {
    "model": "deeplabv3plus_resnet50", "output_stride": 16, "lr": 0.01, "lr_policy": "step",
    "step_size": 1000, "total_itrs": 5000, "batch_size": 8, "crop_size": [513],
    "backbone_weights": "imagenet1k_v1",
}  # fmt: skip


def make_findings(folder, number, class_names=CLASS_NAMES):
    """All that a report of so many runs can hold."""
    names = len(class_names)
    counts = torch.arange(1, names + 1) * 1000
    found = Findings(
        DataSource("voc"), "python visualize.py", "python main.py", class_names=class_names,
        images=1464,
        statistics=ClassStatistics(counts, 999, torch.arange(names) + 1, counts * 3),
    )  # fmt: skip
    found.constant = ["`background` everywhere", "`val` (1,449 images)", "70.00", "3.00"]
    for place in range(number):
        path = folder / f"voc_deeplabv3plus_resnet50_imagenet1k_v1_crop513_{LOSSES[place]}_{place}"
        lists = {"train": {"images": 1464, "ids": "a"}, "val": {"images": 1449, "ids": "b"}}
        machine = {"gpu": "NVIDIA GeForce RTX 4090", "device": "cuda", "precision": "bf16"}
        stored = {"data": lists, "environment": machine}
        args = {**SETTINGS, "loss": LOSSES[place], "seed": place}
        mious = (0.4, 0.5 + place / 100)
        found.runs.append(make_run(path, mious, class_names, stored, **args))
    found.sam = {
        "images": ["a"] * 5, "image_set": "train", "deeplab": {"miou": 0.9}, "oracle": None,
        "sam": {"sam_model": "vit_b"}, "checkpoint": "runs/voc/best.pth", "masks_per_image": 31.2,
        "classes": 7, "borders": {"3": {"deeplab": 0.31}},
    }  # fmt: skip
    for name in PICTURES:
        found.pictures[name] = Picture(name, f"The figure {name}.")
    long_path = "--data_root /home/somebody/a_place_for_data/voc --runs_dir /home/somebody/results"
    found.miss("the numbers of SAM", f"not there: {long_path}", f"sam_infer.py {long_path}")
    found.notes = ["log.jsonl: the last line is cut off and was left out"]
    return found


def text_of(found):
    return to_markdown(block for part in build_report(found).values() for block in part)


@pytest.mark.parametrize(
    ("source", "title"),
    [
        (DataSource("voc"), "PASCAL VOC 2012"),
        (DataSource("custom", "/home/me/my_town"), "my_town"),
        (DataSource("shapes"), "shapes"),
    ],
)
def test_title_names_the_data_set_as_people_do(source, title):
    assert Findings(source, "").data_title == title


def test_each_answer_names_its_problem_in_the_order_of_the_course(tmp_path):
    text = text_of(make_findings(tmp_path, 2))
    headings = re.findall("^##+ ([^:\n]+)", text, re.MULTILINE)
    assert headings == [
        "Problem 1", "Problem 1.2", "Problem 1.3", "Problem 1.4", "Problem 2", "Problem 2.2",
        "Problem 3", "Problem 3.1", "Problem 3.2", "Problem 3.3", "Problem 3.4", "Problem 3.5",
        "Problem 4", "Problem 4.1",
        "What is missing",
    ]  # fmt: skip


def test_every_score_says_on_what(tmp_path):
    text = text_of(make_findings(tmp_path, 2))
    how = "`val` (1,449 images), whole images at native size; NVIDIA GeForce RTX 4090, bf16"
    assert f"`, `deeplabv3plus_resnet50`, evaluated on {how}\n" in text
    assert "of 5 images of `train`, over the 7 classes of their ground truth" in text
    assert "| DeepLab | 90.00 | 31.00 |" in text and "gives 31.2 masks per image;" in text
    assert "| `background` everywhere | `val` (1,449 images) | 70.00 | 3.00 |" in text
    assert "focal_1`, the best run | `val` (1,449 images), whole images at native size |" in text


@pytest.mark.parametrize(
    ("counts", "answer"),
    [
        ((900, 0, 60, 40), "not balanced: `a` has 90.00 % of the labelled pixels, `d` 4.00 %, 22 "
         "times fewer."),
        ((500, 200, 200, 100), "not balanced: `a` has 50.00 % of the labelled pixels, `d` 10.00 %, "
         "5 times fewer."),
        ((490, 200, 200, 110), "balanced: `a` has 49.00 % of the labelled pixels, less than twice "
         "the mean of all classes."),
    ],
)  # fmt: skip
def test_whether_the_classes_are_balanced_follows_from_their_shares(tmp_path, counts, answer):
    found = make_findings(tmp_path, 0, "abcd")
    counts = torch.tensor(counts)
    found.statistics = ClassStatistics(counts, 0, counts.sign(), counts)
    assert f"There are 4 classes. They are {answer}\n" in text_of(found)


def test_sizes_are_those_of_both_heads_with_the_backbone_of_the_best_run(tmp_path):
    found = make_findings(tmp_path, 2)
    text = text_of(found)
    assert "| `deeplabv3_resnet50` | 39,638,869 |" in text
    assert "| `deeplabv3plus_resnet50` | 39,761,845 |" in text
    found.runs[1].args["model"] = "deeplabv3_mobilenet"
    assert "| `deeplabv3plus_mobilenet` | 5,225,717 |" in text_of(found)


def test_sams_sizes_are_those_of_its_models():
    registry = pytest.importorskip("segment_anything").sam_model_registry
    with torch.device("meta"):
        for name in ("vit_b", "vit_l", "vit_h"):
            millions = sum(p.numel() for p in registry[name]().parameters()) / 1e6
            assert f"{millions:.1f} (`{name}`)" in " ".join(read_answers()["4.1"])


@pytest.mark.parametrize("gone", ["statistics", "constant", "sam"])
def test_any_part_may_be_missing(tmp_path, gone):
    found = make_findings(tmp_path, 2)
    setattr(found, gone, None)
    found.pictures = {}
    assert "Problem 3.5" in text_of(found)


def test_report_without_runs_names_the_command(tmp_path):
    text = text_of(make_findings(tmp_path, 0))
    assert "No run yet: `python main.py` makes one." in text and "### Problem 3.5" not in text
    assert "To make it: `sam_infer.py --data_root /home/somebody/" in text
