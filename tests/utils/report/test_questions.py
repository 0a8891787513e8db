"""The course's questions, answered from invented measurements with known results."""

import pytest
import torch

from datasets.class_counts import ClassStatistics
from tests.utils.report.test_runs import write_run
from utils.loss import LOSSES
from utils.report.contents import Findings
from utils.report.questions import (
    SAM_PARAMETERS,
    WORDS,
    accuracy_against_miou,
    against_sam,
    balance,
    compare,
    heads,
    losses,
)
from utils.run_records import load_run

NAMES = ["background", "cat", "dog", "cow"]


@pytest.fixture
def found():
    counts = torch.tensor([700, 200, 50, 50])
    image_pixels = torch.tensor([1000, 400, 200, 500])
    statistics = ClassStatistics(counts, 250, torch.tensor([9, 8, 2, 3]), image_pixels)
    return Findings(
        "custom", NAMES, "train", "val", "python main.py", "python sam_infer.py",
        images=9, statistics=statistics,
    )  # fmt: skip


def make_run(folder, mious, evaluations=None, **args):
    """A run with these IoUs of the classes; its evaluations end with their mean."""
    evaluations = (*(evaluations or ()), sum(mious) / 4)
    run = load_run(write_run(folder, evaluations, NAMES, dataset="custom", **args))
    run.best["class_iou"] = dict(zip(NAMES, mious, strict=True))
    return run


def text_of(blocks):
    return "\n\n".join(blocks).replace("\\", "")


def test_balance_and_challenges_are_told_in_numbers(found):
    text = text_of(balance(found))
    assert "4 classes: the background and 3 object classes. They are not balanced" in text
    assert "`cat` has 20.00 % of the labelled pixels (in 8 images)" in text
    assert "`dog` 5.00 % (in 2 images), 4.0 times fewer" in text
    bias, rare, few, void, scale, alike = text_of(balance(found)[-1:]).splitlines()
    assert bias == "- Bias: `background` alone has 70.00 % of the labelled pixels."
    assert "`dog` 5.00 %, `cow` 5.00 %, `cat` 20.00 % of the labelled" in rare
    assert few == "- Few images: 9 in all, and 2 with `dog`."
    assert "20.00 % of all pixels" in void  # 250 of 1250
    # cat 200 of 400, dog 50 of 200, cow 50 of 500
    assert "`cow` fills 10.00 %" in scale and "`cat` 50.00 %" in scale
    assert "no confusion matrix was made" in alike
    found.statistics.pixel_counts = torch.tensor([30, 25, 25, 20])
    assert "They are about balanced" in text_of(balance(found))
    found.statistics.pixel_counts = torch.tensor([30, 25, 0, 20])
    assert "No pixel at all has `dog`." in text_of(balance(found))


@pytest.mark.parametrize("counts", [[0, 0, 0, 0], [9, 0, 0, 0]])
def test_balance_without_objects_is_said_to_be_unknown(found, counts):
    found.statistics.pixel_counts = torch.tensor(counts)
    assert "Their balance was not measured" in text_of(balance(found))
    found.statistics = None
    assert "Their balance was not measured" in text_of(balance(found))


def test_look_alikes_are_the_objects_that_are_confused_most(found):
    confusion = torch.tensor([[90, 10, 0, 0], [60, 40, 0, 0], [0, 0, 80, 20], [0, 5, 15, 80]])
    found.confusion = ("run_a", 7, confusion)
    assert (
        "`run_a` takes 20.00 % of the pixels of `dog` for `cow`, more than of any other two "
        "objects (on 7 images of `val`)" in text_of(balance(found)[-1:])
    )


def test_a_constant_prediction_is_the_example_for_miou(found, tmp_path):
    assert "No example was measured: the masks of `val` are missing" in text_of(
        accuracy_against_miou(found)
    )
    found.constant = ("background", {"pixel_acc": 0.7, "miou": 0.175, "class_iou": [0.7, 0, 0, 0]})
    found.val_images = 1449
    found.runs = [make_run(tmp_path / "a", (0.9, 0.5, 0.1, 0.3))]
    text = text_of(accuracy_against_miou(found))
    assert "scores 70.00 % pixel accuracy on `val` (1,449 images), but only 17.50 % mIoU" in text
    assert "70.00 % for that class and 0 for the 3 others" in text
    assert "(R1) has 90.00 % pixel accuracy and 45.00 % mIoU on `val`, whole images" in text


def test_what_was_not_measured_names_its_command(found):
    text = text_of([*heads(found), *losses(found), *against_sam(found)])
    for command in ("--model deeplabv3_resnet50", "--model deeplabv3plus_resnet50"):
        assert f"`python main.py {command}`" in text
    assert "run `python main.py --loss focal`" in text and "run `python sam_infer.py`" in text


def test_heads_are_compared_and_counted(found, tmp_path):
    found.runs = [
        make_run(tmp_path / "v3", (0.9, 0.5, 0.1, 0.3), model="deeplabv3_mobilenet"),
        make_run(tmp_path / "plus", (0.9, 0.5, 0.3, 0.3), model="deeplabv3plus_mobilenet"),
    ]
    found.class_names = [str(number) for number in range(21)]
    found.statistics = None
    text = text_of(heads(found))
    assert "`deeplabv3plus_mobilenet` 5,225,717" in text
    assert "| mIoU | 45.00 | 50.00 |" in text and "5.00 points more" in text
    assert "Settings in which they differ: `--model`." in text


def test_heads_are_compared_in_the_pair_that_differs_least(found, tmp_path):
    found.runs = [
        make_run(tmp_path / "lr1", (0.4,) * 4, model="deeplabv3_resnet50", lr=1),
        make_run(tmp_path / "lr2", (0.6,) * 4, model="deeplabv3_resnet50", lr=2),
        make_run(tmp_path / "plus", (0.5,) * 4, model="deeplabv3plus_resnet50", lr=1),
    ]
    assert "| mIoU | 40.00 | 50.00 |" in text_of(heads(found))


def test_rarer_and_more_frequent_classes_are_compared(found, tmp_path):
    found.runs = [
        make_run(tmp_path / "one", (0.9, 0.5, 0.1, 0.3), loss="ce"),
        make_run(tmp_path / "two", (0.8, 0.5, 0.2, 0.5), loss="focal", focal_gamma=3.0),
    ]
    text = text_of(losses(found))
    # cow and dog are the rarer half, background and cat the other.
    assert "| mean IoU of the 2 rarer classes | 20.00 | 35.00 |" in text
    assert "| mean IoU of the 2 more frequent classes | 70.00 | 65.00 |" in text
    assert "5.00 points more" in text and "`--focal_gamma`, `--loss`" in text
    # 0.1 ** 3 and 0.9 ** 3
    assert "gamma = 3" in text and "keeps 0.10 %" in text and "keeps 72.90 %" in text


def test_gamma_of_zero_is_told_as_zero(found, tmp_path):
    found.runs = [make_run(tmp_path / "a", (0.5,) * 4, loss="focal", focal_gamma=0.0)]
    text = text_of(losses(found))
    assert "gamma = 0" in text and text.count("keeps 100.00 %") == 2
    assert "run `python main.py --loss ce`" in text


def test_every_loss_is_proposed_for_its_reasons(found, tmp_path):
    for loss in LOSSES:
        assert {f"{loss} {part}" for part in ("name", "because", "against")} <= set(WORDS)
    found.runs = [
        make_run(tmp_path / "a", (0.5,) * 4, loss="ce"),
        make_run(tmp_path / "b", (0.4,) * 4, loss="dice"),
    ]
    assert "I propose the Dice loss, because it compares the region" in text_of(losses(found))


@pytest.mark.parametrize(
    ("earlier", "second", "words"),
    [
        ((), 0.504, "equal within the spread"),  # closer than half a point
        ((), 0.496, "equal within the spread"),
        ((), 0.506, "better by more than the spread"),
        ((), 0.494, "worse by more than the spread. The reason may be what speaks against it: its"),
        ((0.1, 0.49, 0.48), 0.519, "equal within the spread"),  # the last three: 0.49 0.48 0.50
        ((0.1, 0.49, 0.48), 0.521, "better by more than the spread"),
        ((0.1, 0.49, 0.48), 0.479, "worse by more than the spread"),
    ],
)
def test_the_verdict_follows_from_the_numbers_and_the_spread(
    found, tmp_path, earlier, second, words
):
    found.runs = [
        make_run(tmp_path / "a", (0.5,) * 4, earlier, loss="ce"),
        make_run(tmp_path / "b", (second,) * 4, loss="focal"),
    ]
    assert words in losses(found)[-1]


def test_seeds_give_the_mean_and_the_spread(found, tmp_path):
    found.runs = [
        make_run(tmp_path / f"{loss}_s{seed}", (miou,) * 4, loss=loss, seed=seed)
        for loss, mious in (("ce", (0.50, 0.54)), ("focal", (0.55, 0.55)))
        for seed, miou in enumerate(mious)
    ]
    text = text_of(losses(found))
    assert "|  | R1, R2 | R3, R4 |" in text
    assert "| mIoU | 52.00 ± 2.00 | 55.00 ± 0.00 |" in text
    assert "3.00 points less" not in text and "3.00 points more" in text
    assert "spread (range over the seeds, at least half a point) is 4.00" in text
    assert "equal within the spread" in text  # 3 points, and the seeds are 4 apart
    assert "Settings in which they differ: `--loss`." in text


def test_a_difference_in_more_than_the_loss_is_not_laid_to_the_loss(found, tmp_path):
    found.runs = [
        make_run(tmp_path / "a", (0.5,) * 4, loss="ce", lr=0.01),
        make_run(tmp_path / "b", (0.4,) * 4, loss="focal", lr=0.02, focal_gamma=1.0),
    ]
    assert "So the loss alone does not explain the difference." in text_of(losses(found))
    found.runs[1].args["lr"] = 0.01
    assert "does not explain" not in text_of(losses(found))


def test_where_and_how_fast_a_run_computed_is_no_difference(found, tmp_path):
    found.runs = [
        make_run(tmp_path / "a", (0.5,) * 4, loss="ce", cache="ram", num_workers=4, seed=1),
        make_run(tmp_path / "b", (0.4,) * 4, loss="focal", cache="none", device="mps", seed=0),
    ]
    assert "Settings in which they differ: `--loss`." in text_of(losses(found))


def test_other_lists_are_said_beside_the_comparison(found, tmp_path):
    runs = [
        load_run(
            write_run(
                tmp_path / loss, (0.5,), NAMES, loss=loss,
                stored={"data": {"train": {"images": images, "ids": str(images)}}},
            )
        )
        for loss, images in (("ce", 300), ("focal", 1464))
    ]  # fmt: skip
    found.runs = runs
    blocks, _ = compare(found, *runs, "loss")
    assert (
        "trained on different lists of images, so part of their difference may come from it: "
        "`ce` on `train` (300 images); `focal` on `train` (1,464 images)." in text_of(blocks[1:])
    )


def test_sams_sizes_are_those_of_its_models(found):
    registry = pytest.importorskip("segment_anything").sam_model_registry
    with torch.device("meta"):
        for name, number in SAM_PARAMETERS.items():
            assert sum(p.numel() for p in registry[name]().parameters()) == number
    found.sam = {"sam": {"sam_model": "vit_l"}}
    text = text_of(against_sam(found))
    assert "in million parameters: `vit_b` 93.7, `vit_l` (used here) 312.3, `vit_h` 641.1." in text
