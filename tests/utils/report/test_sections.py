"""The whole report: its parts, and what they say."""

import re

import pytest
import torch

from datasets.class_counts import ClassStatistics
from datasets.voc import CLASS_NAMES
from tests.utils.report.test_runs import write_run
from utils.report.contents import Findings, Missing
from utils.report.markdown import picture
from utils.report.sections import ANSWERS, build_report
from utils.run_records import load_run

LOSSES = ("ce", "focal", "ce", "focal", "ce_lovasz", "dice")
PICTURES = ("classes", "distribution", "curves", "compare", "errors", "confusion")
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
        "voc", class_names, "train", "val", "python main.py", "python sam_infer.py",
        author="Jane Doe", date="25 November 2026", images=1464, val_images=1449,
        statistics=ClassStatistics(counts, 999, torch.arange(names) + 1, counts * 3),
    )  # fmt: skip
    found.constant = ("background", {"pixel_acc": 0.7, "miou": 0.03, "class_iou": [0.7, 0, None]})
    for place in range(number):
        path = folder / f"voc_deeplabv3plus_resnet50_imagenet1k_v1_crop513_{LOSSES[place]}_{place}"
        lists = {"train": {"images": 1464, "ids": "a"}, "val": {"images": 1449, "ids": "b"}}
        stored = {"data": lists, "environment": {"gpu": "NVIDIA GeForce RTX 4090"}}
        args = {**SETTINGS, "loss": LOSSES[place], "seed": place}
        mious = (0.4, 0.5 + place / 100)
        found.runs.append(load_run(write_run(path, mious, class_names, stored, **args)))
    found.sam = {
        "images": ["a"] * 5, "image_set": "train", "deeplab": {"miou": 0.9}, "oracle": None,
        "sam": {"sam_model": "vit_b"}, "checkpoint": "runs/voc/best.pth", "masks_per_image": 31.2,
        "borders": {"3": {"deeplab": 0.31}},
    }  # fmt: skip
    for name in PICTURES:
        found.pictures[name] = picture(f"{name}.png", f"The figure {name}.")
    long_path = "--data_root /home/somebody/a_place_for_data/voc --runs_dir /home/somebody/results"
    found.missing = [
        Missing("the numbers of SAM", f"not there: {long_path}", f"sam_infer.py {long_path}")
    ]
    found.notes = ["log.jsonl: the last line is cut off and was left out"]
    return found


def test_title_names_the_data_set_as_people_do(tmp_path):
    found = make_findings(tmp_path, 1)
    title = "# Semantic segmentation of {} with DeepLab\n\n{}\n\n##".format
    below = "Jane Doe, 25 November 2026"
    assert build_report(found).startswith(title("PASCAL VOC 2012", below))
    found.dataset_name, found.data_root, found.author = "custom", str(tmp_path / "my_town"), ""
    assert build_report(found).startswith(title("my\\_town", "25 November 2026"))
    found.dataset_name, found.date = "shapes", ""
    assert build_report(found).startswith("# Semantic segmentation of shapes with DeepLab\n\n##")


def test_each_answer_names_its_problem_in_the_order_of_the_course(tmp_path):
    text = build_report(make_findings(tmp_path, 2))
    headings = re.findall("^##+ ([^:\n]+)", text, re.MULTILINE)
    assert headings == [
        "Problem 1", "Problem 1.2", "Problem 1.3", "Problem 1.4", "Problem 2", "Problem 2.2",
        "Problem 3", "Problem 3.3", "Problem 3.4", "Problem 3.5", "Problem 4", "Problem 4.1",
        "What is missing",
    ]  # fmt: skip


def test_every_score_says_on_what(tmp_path):
    found = make_findings(tmp_path, 2)
    text = build_report(found)
    name, how = found.runs[0].name, "`val` (1,449 images), whole images at native size"
    on = f"`deeplabv3plus_resnet50` on voc, evaluated on {how}; NVIDIA GeForce RTX 4090"
    assert f"- R1: `{name}`, {on}, -\n" in text
    assert "| R1 | 50.00 | 90.00 | 50.00 | 80.00 | 3 min | - |" in text
    assert f"with 51.00 % mIoU on {how}" in text
    assert "voc: IoU of each class in percent, at the best evaluation" in text
    assert "SAM on 5 images of `train`, mIoU in percent over these images alone" in text
    assert "| mIoU of DeepLab | 90.00 |" in text


def test_seeds_have_a_row_of_their_mean_and_spread(tmp_path):
    found = make_findings(tmp_path, 0)
    for seed, miou in enumerate((0.50, 0.54)):
        run = write_run(tmp_path / f"a_s{seed}", (miou,), seed=seed, **SETTINGS)
        found.runs.append(load_run(run))
    text = build_report(found)
    assert "| R1 | 52.00 ± 2.00 | 90.00 ± 0.00 |" in text and "- R1: `a_s{0,1}`," in text
    assert "| class | R1 |" in text and "| `cat` | 52.00 |" in text


def test_settings_that_differ_are_told_and_no_others(tmp_path):
    found = make_findings(tmp_path, 0)
    for gamma, args in ((0.0, {}), (1.5, {"num_workers": 4, "color_jitter": 0.3})):
        path = tmp_path / f"gamma{gamma}"
        args = {**SETTINGS, "loss": "focal", "focal_gamma": gamma, **args}
        found.runs.append(load_run(write_run(path, **args)))
    text = build_report(found)
    assert "| `loss` | focal | focal |" in text.replace("  ", " ")
    assert "| `focal_gamma` | 0.0 | 1.5 |" in text and "| `color_jitter` | 0.0 | 0.3 |" in text
    assert "`num_workers`" not in text and "`ema`" not in text


def test_both_metrics_of_a_constant_and_of_the_best_run_stand_beside_each_other(tmp_path):
    text = build_report(make_findings(tmp_path, 2))
    assert "| `background` everywhere | `val` (1,449 images) | 70.00 | 3.00 |" in text
    assert "focal_1`, the best run | `val` (1,449 images), whole images at native size |" in text


def test_sizes_are_those_of_both_heads_with_the_backbone_of_the_best_run(tmp_path):
    found = make_findings(tmp_path, 2)
    text = build_report(found)
    assert "| `deeplabv3_resnet50` | 39,638,869 |" in text
    assert "| `deeplabv3plus_resnet50` | 39,761,845 |" in text
    found.runs[1].args["model"] = "deeplabv3_mobilenet"
    assert "| `deeplabv3plus_mobilenet` | 5,225,717 |" in build_report(found)


def test_sams_sizes_are_those_of_its_models():
    registry = pytest.importorskip("segment_anything").sam_model_registry
    with torch.device("meta"):
        for name in ("vit_b", "vit_l", "vit_h"):
            millions = sum(p.numel() for p in registry[name]().parameters()) / 1e6
            assert f"{millions:.1f} (`{name}`)" in " ".join(ANSWERS["4.1"].split())


def test_two_protocols_are_told_apart(tmp_path):
    found = make_findings(tmp_path, 2)
    found.runs[1].args["crop_val"] = True
    text = build_report(found)
    assert "centre crops (short side 513, then the centre square);" in text
    assert "Scores of different protocols do not compare." in text


@pytest.mark.parametrize("gone", ["statistics", "constant", "sam", "picks"])
def test_any_part_may_be_missing(tmp_path, gone):
    found = make_findings(tmp_path, 2)
    setattr(found, gone, None)
    found.pictures = {}
    assert "Problem 3.5" in build_report(found)


def test_report_without_runs_names_the_command(tmp_path):
    text = build_report(make_findings(tmp_path, 0))
    assert "No run yet: `python main.py` makes one." in text and "### Problem 3.5" not in text
