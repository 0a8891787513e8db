"""What the report says of runs: their rates, settings and scores, and which loss is better."""

import pytest

from datasets import DataSource
from datasets.voc import CLASS_NAMES
from tests.utils.report.test_runs import make_run
from tests.utils.report.test_sections import SETTINGS
from utils.loss import LOSSES
from utils.report.contents import Findings
from utils.report.markdown import to_markdown
from utils.report.sections import read_answers
from utils.report.training import training


@pytest.fixture
def told(tmp_path):
    """The text on runs given as (mIoUs, settings)."""

    def tell(*runs, class_names=CLASS_NAMES, class_iou=(), memory=()):
        found = Findings(DataSource("voc"), "")
        for number, (mious, args) in enumerate(runs):
            name = f"r_s{args['seed']}" if "seed" in args else f"r{number}"
            found.runs.append(make_run(tmp_path / name, mious, class_names, **SETTINGS | args))
        for run, ious in zip(found.runs, class_iou, strict=False):
            run.best["class_iou"] = ious
        for run, megabytes in zip(found.runs, memory, strict=False):
            run.best["max_memory_mb"] = megabytes
        return to_markdown(training(found, read_answers()))

    return tell


def test_settings_of_the_recipe_and_all_that_are_no_default_are_told(told):
    resized = {"resize": 0.5, "num_workers": 4}  # the runs agree in one; the other is no matter
    gone = {"an_old_flag": False, "another": True}
    text = told(
        ((0.5,), {"loss": "focal", "focal_gamma": 0.0, **resized}),
        ((0.5,), {"loss": "focal", "focal_gamma": 1.5, **resized, **gone}),
    )
    for row in ("loss` | focal | focal", "focal_gamma` | 0.0 | 1.5", "resize` | 0.5 | 0.5",
                "lr` | 0.01", "another` | - | True"):  # fmt: skip
        assert f"| `{row} |" in text
    for name in ("num_workers", "ema_decay", "an_old_flag"):
        assert f"`{name}`" not in text


FROM_SCRATCH = {"backbone_weights": "none", "backbone_lr_factor": 1.0}


@pytest.mark.parametrize(
    ("args", "rates", "schedule"),
    [
        (
            {},
            "with `imagenet1k_v1`, has the learning rate 0.001, the head, which is new, 0.01.",
            "become a tenth after every 1,000 of 5,000 iterations.",
        ),
        (
            {**FROM_SCRATCH, "lr_policy": "poly", "warmup_itrs": 9},
            "with random weights, has the learning rate 0.01, the head, which is new, 0.01.",
            "are multiplied by (1 - i / 5,000)^0.9 in iteration i, and rise over the first 9.",
        ),
        (
            {"step_size": 5000, "ckpt": "a.pth"},
            "with `a.pth`, has the learning rate 0.001,",
            "become a tenth after every 5,000 of 5,000 iterations.",
        ),
    ],
)
def test_rates_and_schedule_are_those_of_the_run_beside_their_code(told, args, rates, schedule):
    text = told(((0.5,), args))
    assert rates in text and schedule in text
    assert 'groups = [{"params": backbone, "lr": backbone_lr_factor * lr}, {"params": head' in text
    assert "    schedule = PolynomialLR(optimizer, total_itrs, power=0.9)\n" in text


@pytest.mark.parametrize("dataset", ["voc", "shapes"])
def test_the_best_run_stands_beside_what_the_course_asks_for_on_voc(told, dataset):
    text = told(((0.3, 0.6651), {"dataset": dataset}), ((0.4,), {"dataset": dataset}))
    assert "The best run is `r0` (cross entropy) with 66.51 % mIoU on `val`, whole images" in text
    assert "after epoch 4, iteration 20" in text
    assert ("The course asks for 65 % with cross entropy" in text) == (dataset == "voc")


CE, FOCAL = {"loss": "ce"}, {"loss": "focal"}
LAST = [((0.10, 0.40, 0.42, 0.41), CE)]  # the last three lie 2 points apart
SEEDS = [((0.1, 0.40), CE | {"seed": 0}), ((0.1, 0.44), CE | {"seed": 1})]
OF_LAST = "the 2.00 by which the last evaluations of one run differ"
OF_SEEDS = "the 4.00 by which the seeds of one loss differ"
NEITHER = "no run tells which loss is better."


@pytest.mark.parametrize(
    ("ce", "focal", "gain", "verdict"),
    [
        (LAST, 0.46, "+4.00", f"The first is more than {OF_LAST}: focal loss is better here."),
        (LAST, 0.43, "+1.00", f"The first is no more than {OF_LAST}: {NEITHER}"),
        (LAST, 0.38, "-4.00", f"The first is more than {OF_LAST}: focal loss is worse here."),
        (SEEDS, 0.47, "+5.00", f"The first is more than {OF_SEEDS}: focal loss is better here."),
        (SEEDS, 0.45, "+3.00", f"The first is no more than {OF_SEEDS}: {NEITHER}"),
        ([((0.4,), CE)], 0.6, "+20.00", "Of one seed and one evaluation nobody can tell whether"),
    ],
)
def test_the_other_loss_is_better_or_worse_or_neither(told, ce, focal, gain, verdict):
    text = told(*ce, ((focal,), FOCAL))
    assert "With focal loss (R2) in place of cross entropy (R1) the mIoU changes by " in text
    assert f"{gain} points and the pixel accuracy by +0.00. {verdict}" in text
    assert "I propose focal loss, because it multiplies" in text


def test_the_classes_that_gain_and_lose_most_are_named(told):
    ious = [{"a": 0.5, "b": 0.5, "c": 0.5, "d": None}, {"a": 0.6, "b": 0.4, "c": 0.52, "d": 0.9}]
    other = FOCAL | {"lr": 0.02, "stored": {"data": {"train": {"ids": "x"}}}}
    text = told(((0.5,), CE), ((0.6,), other), class_names="abcd", class_iou=ious)
    assert (
        "Most is gained for `a` (+10.00), `c` (+2.00), and most is lost for `b` (-10.00)." in text
    )
    assert "The runs also differ in `lr`, the images that they were trained on: what the" in text


def test_the_models_that_are_compared_have_their_scores_there(told):
    text = told(((0.5,), CE), ((0.6,), FOCAL), ((0.4,), FOCAL | {"seed": 1})).partition("3.5")[2]
    assert "| `r0` | cross entropy | 50.00 | 90.00 | 50.00 | 80.00 |" in text
    assert "| `r1` | focal loss | 60.00 | 90.00 | 50.00 | 80.00 |" in text and "`r2`" not in text


def test_every_loss_has_a_reason_and_a_new_one_needs_none(told):
    assert LOSSES.keys() <= read_answers().keys()
    assert "I propose mine, because of these numbers." in told(
        ((0.5,), CE), ((0.6,), {"loss": "mine"})
    )


def test_one_loss_is_compared_with_none(told):
    text = told(((0.5,), CE))
    assert "So far only cross entropy was trained." in text and "I propose" not in text


def test_scores_of_a_variant_are_the_mean_over_its_seeds(told):
    ious = [{"a": 0.4, "b": 0.2}, {"a": 0.41, "b": None}, {"a": 0.5, "b": 0.6}]
    runs = [((0.2, 0.4, 0.3), CE | {"seed": 0}), ((0.41,), CE | {"seed": 1}), ((0.5,), FOCAL)]
    text = told(*runs, class_names="ab", class_iou=ious, memory=(4000.4, 5000.0))
    assert "- R1: `r_s{0,1}`, `deeplabv3plus_resnet50`, evaluated on `val`, whole images" in text
    # The best of one is 40, of the other 41; they took 300 s and 100 s.
    scores = "40.50 ± 0.50 | 90.00 ± 0.00 | 50.00 ± 0.00 | 80.00 ± 0.00"
    assert f"| R1 | {scores} | 3.3 | 5,000 MB |" in text  # the peak of all
    assert "| R2 | 50.00 | 90.00 | 50.00 | 80.00 | 1.7 | - |" in text
    assert "| `a` | 40.50 | 50.00 |" in text and "| `b` | - | 60.00 |" in text
