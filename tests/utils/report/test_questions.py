"""The course's questions, answered from invented measurements with known results."""

import pytest
import torch

from datasets.class_counts import ClassStatistics
from tests.utils.report.test_runs import write_run
from utils.report.contents import Findings
from utils.report.questions import (
    accuracy_against_miou,
    against_sam,
    balance,
    ce_against_focal,
    heads,
)
from utils.run_records import load_run

NAMES = ["background", "cat", "dog", "cow"]


@pytest.fixture
def found():
    counts = torch.tensor([700, 200, 50, 50])
    statistics = ClassStatistics(counts, 100, torch.tensor([9, 8, 2, 3]), counts)
    return Findings(
        "custom", NAMES, "train", "val", "python main.py", "python sam_infer.py",
        images=9, statistics=statistics,
    )  # fmt: skip


def make_run(folder, mious, **args):
    run = load_run(write_run(folder, (sum(mious) / 4,), NAMES, dataset="custom", **args))
    run.log[0]["class_iou"] = dict(zip(NAMES, mious, strict=True))
    return run


def test_balance(found):
    (text,) = balance(found)
    assert "4 classes: the background and 3 object classes" in text
    assert "background alone has 70.00 % of the labelled pixels" in text
    assert "`cat` is the largest with 20.00 % (in 8 images)" in text
    assert "`dog` the smallest with 5.00 % (in 2 images): 4.0 times fewer" in text
    assert text.endswith("The classes are not balanced.")
    found.statistics.pixel_counts = torch.tensor([30, 25, 25, 20])
    assert balance(found)[0].endswith("The classes are about balanced.")


def test_accuracy_against_miou(found, tmp_path):
    found.constant = ("background", {"pixel_acc": 0.7, "miou": 0.175, "class_iou": [0.7, 0, 0, 0]})
    found.runs = [make_run(tmp_path / "a", (0.9, 0.5, 0.1, 0.3))]
    first, second, _ = accuracy_against_miou(found)
    assert "scores 70.00 % pixel accuracy on `val`, but only 17.50 % mIoU" in first
    assert "70.00 % for that class and 0 for the 3 others" in first
    assert "90.00 % pixel accuracy and 45.00 % mIoU" in second
    assert "from 10.00 % (`dog`) to 90.00 % (`background`)" in second


def test_what_was_not_measured_says_so(found):
    assert "not measured: the masks of `val` are missing" in accuracy_against_miou(found)[0]
    texts = "\n".join([*heads(found), *ce_against_focal(found), *against_sam(found)])
    for command in ("--model deeplabv3_resnet50", "--model deeplabv3plus_resnet50"):
        assert f"`python main.py {command}`" in texts
    assert "`python main.py --loss ce` and `python main.py --loss focal`" in texts
    assert "run `python sam_infer.py`" in texts
    assert "Measured" not in texts


def test_heads_are_compared_and_counted(found, tmp_path):
    models = ("deeplabv3_mobilenet", "deeplabv3plus_mobilenet")
    found.runs = [
        make_run(tmp_path / "v3", (0.9, 0.5, 0.1, 0.3), model=models[0]),
        make_run(tmp_path / "plus", (0.9, 0.5, 0.3, 0.3), model=models[1]),
    ]
    built, measured, caveats = heads(found)
    found.class_names = [str(number) for number in range(21)]
    assert "`deeplabv3plus_mobilenet` 5,225,717" in heads(found)[0]
    assert "R1 (`v3`) reaches 45.00 % mIoU and R2 (`plus`) 50.00 %: 5.00 points more" in measured
    assert "Settings in which the two differ: `--model`." in caveats


def test_focal_against_ce_by_frequency(found, tmp_path):
    found.runs = [
        make_run(tmp_path / "one", (0.9, 0.5, 0.1, 0.3), loss="ce"),
        make_run(tmp_path / "two", (0.8, 0.5, 0.2, 0.5), loss="focal", focal_gamma=3.0),
    ]
    measured, caveats, frequency, why = ce_against_focal(found)
    assert "5.00 points more" in measured
    assert "highest changes are `cow` +20.0, `dog` +10.0" in measured
    assert "lowest `background` -10.0, `cat` +0.0" in measured
    # cow and dog are the rarer half: (20 + 10) / 2; background and cat: (-10 + 0) / 2
    assert "the 2 rarer classes change by +15.00 points" in frequency
    assert "the 2 more frequent ones by -5.00" in frequency
    assert "`--focal_gamma`, `--loss`" in caveats
    # 0.1 ** 3 and 0.9 ** 3
    assert "gamma = 3" in why and "0.10 %" in why and "72.90 %" in why


def test_the_fairest_pair_is_compared_before_the_best(found, tmp_path):
    found.runs = [
        make_run(tmp_path / "ce_lr1", (0.4,) * 4, loss="ce", lr=1),
        make_run(tmp_path / "ce_lr2", (0.6,) * 4, loss="ce", lr=2),
        make_run(tmp_path / "focal_lr1", (0.405,) * 4, loss="focal", lr=1),
    ]
    measured, caveats, *_ = ce_against_focal(found)
    assert "`ce_lr1`" in measured and "`focal_lr1`" in measured
    found.runs[2].args["crop_val"] = True
    assert "different protocols" in ce_against_focal(found)[1]


def test_equal_scores_are_called_equal(found, tmp_path):
    found.runs = [
        make_run(tmp_path / "one", (0.4,) * 4, loss="ce"),
        make_run(tmp_path / "two", (0.404,) * 4, loss="focal"),
    ]
    assert "equal within half a point (+0.40)" in ce_against_focal(found)[0]


@pytest.mark.parametrize(
    ("sam", "words"),
    [
        ({"masks_per_image": 31.25}, "SAM finds 31.2 masks per image."),
        ({"deeplab": {"miou": 0.5}, "sam_deeplab": {"miou": 0.48}}, "50.00 to 48.00 % (-2.00)"),
        ({"oracle": {"miou": 0.9}}, "it would be 90.00 %"),
        ({"deeplab": None, "masks_per_region": 2}, "2.0 masks for each region"),
    ],
)
def test_any_part_of_sams_scores_may_be_missing(found, sam, words):
    found.sam = {"images": ["a"], "image_set": "val", **sam}
    *_, text = against_sam(found)
    assert words in text and text.startswith("On 1 image of `val`")
