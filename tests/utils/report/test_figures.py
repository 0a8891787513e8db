"""The figures of predictions, drawn with a predictor whose answers are known."""

import numpy as np
import pytest
import torch

from datasets.base import SegmentationDataset
from datasets.voc import CLASS_NAMES, PALETTE, VOCSegmentation
from tests.conftest import make_voc, save_mask
from tests.utils.report.test_image_grid import LONG, check_layout
from tests.utils.report.test_runs import write_run
from utils.common.errors import UserError
from utils.report import figures
from utils.run_records import load_run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("voc")
    make_voc(root, num_train=21, num_val=5)
    return VOCSegmentation(root, "val")


@pytest.fixture
def run(tmp_path):
    return load_run(write_run(tmp_path / LONG, (0.1, 0.6612)))


class AllBackground:
    """A predictor that sees nothing."""

    device = CPU

    def __call__(self, images):
        return torch.zeros(images.shape[0], *images.shape[2:], dtype=torch.uint8)


nothing = AllBackground()


def background_ious(dataset):
    """By hand: the background's IoU, halved, since the only object of each image has 0."""
    return [float((t == 0).sum() / (t != 255).sum()) / 2 for _, t in dataset]


def captions(figure):
    return [axes.get_xlabel() for axes in figure.axes]


def test_an_images_miou_takes_the_classes_of_its_target(dataset):
    target = torch.zeros(10, 10, dtype=torch.uint8)
    target[:5] = 7
    target[0, 0] = 255
    pred = target.clone()
    pred[0, 0], pred[9, :4] = 3, 1  # four stray pixels of a class that is not there
    miou, accuracy = figures.image_scores(target, pred, 21)
    assert miou == pytest.approx((1 + 46 / 50) / 2)  # and not that, and 0 for the third: 0.64
    assert accuracy == pytest.approx(95 / 99)
    assert figures.scores_text((miou, accuracy)) == "mIoU 96.0\naccuracy 96.0 %"
    assert figures.image_scores(torch.full((3, 3), 255), torch.zeros(3, 3).long(), 21) is None
    assert figures.scores_text(None) == "no labelled pixel"


def test_comparison_shows_images_targets_and_predictions(dataset, run):
    ids = {dataset.ids[1]: "cat", dataset.ids[2]: "dog"}
    figure = figures.draw_comparison(dataset, ids, [(run, nothing)] * 2)
    arrays = [axes.images[0].get_array() for axes in figure.axes]
    assert len(arrays) == 8
    expected = background_ious(dataset)
    for place, index in ((0, 1), (4, 2)):
        row, (image, target) = arrays[place : place + 4], dataset[index]
        np.testing.assert_array_equal(row[0], image.permute(1, 2, 0))
        np.testing.assert_array_equal(row[1], PALETTE[target])
        assert not row[2].any() and row[2].shape == row[1].shape
        name = ids[dataset.ids[index]]
        score = f"mIoU {100 * expected[index]:.1f}\naccuracy {200 * expected[index]:.1f} %"
        assert captions(figure)[place : place + 4] == [
            f"{name}\n{dataset.ids[index]}", "", score, score,
        ]  # fmt: skip
    shown = {CLASS_NAMES[v] for i in (1, 2) for v in dataset[i][1].unique() if v != 255}
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert set(legend) == shown | {"background", "void (not scored)"}
    check_layout(figure)


def test_heads_name_model_and_loss_and_say_what_a_score_is_of(dataset, tmp_path):
    settings = {"model": "deeplabv3plus_resnet50", "val_image_set": "val"}
    runs = [
        load_run(write_run(tmp_path / "first", (0.1, 0.6512), **settings)),
        load_run(write_run(tmp_path / "second", (0.7,), **settings, loss="focal", crop_val=True)),
    ]
    models = [(run, nothing) for run in runs]
    figure = figures.draw_comparison(dataset, {dataset.ids[0]: "cat"}, models)
    heads = [axes.get_title().replace("\n", " ") for axes in figure.axes]
    assert heads == [
        "image", "ground truth", "DeepLabV3+ R50, cross entropy mIoU 65.1 on val",
        "DeepLabV3+ R50, focal loss mIoU 70.0 on val, centre crops",
    ]  # fmt: skip
    small = [text for axes in figure.axes[2:] for text in axes.texts]
    assert [text.get_text() for text in small] == ["first", "second"]
    assert all(text.get_fontsize() < figure.axes[2].title.get_fontsize() for text in small)


def test_errors_are_sorted_by_the_images_miou(dataset, run):
    analysis = figures.analyse_errors(dataset, "val", nothing)
    expected = background_ious(dataset)
    indices = [index for _, _, index in analysis.scores]
    assert indices == sorted(range(5), key=lambda index: (expected[index], index))
    assert [miou for miou, _, _ in analysis.scores] == pytest.approx(sorted(expected))
    labelled = sum(int((target != 255).sum()) for _, target in dataset)
    assert int(analysis.confusion.sum()) == int(analysis.confusion[:, 0].sum()) == labelled
    figure = figures.draw_errors(analysis, run, nothing)
    assert len(figure.axes) == 4 * 5  # of five images three are the worst, two the best
    ranks = ["worst 1", "worst 2", "worst 3", "best 1", "best 2"]
    order = [indices[place] for place in (0, 1, 2, 4, 3)]
    assert captions(figure)[::4] == [
        f"{rank}\n{dataset.ids[index]}" for rank, index in zip(ranks, order, strict=True)
    ]
    wrong = (figure.axes[3].images[0].get_array() == (220, 30, 30)).all(-1)
    _, target = dataset[order[0]]
    np.testing.assert_array_equal(wrong, (target != 0) & (target != 255))
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend[-3:] == ["void (not scored)", "wrong", "right (darkened)"]
    check_layout(figure)


@pytest.mark.parametrize(
    ("limit", "places", "measured_on"),
    [
        (1, [0], "1 of 5 images of val"), (2, [0, 2], "2 of 5 images of val"),
        (9, [0, 1, 2, 3, 4], "val"), (0, [0, 1, 2, 3, 4], "val"),
    ],
)  # fmt: skip
def test_a_limit_spreads_over_the_set_and_is_said(dataset, run, limit, places, measured_on):
    analysis = figures.analyse_errors(dataset, "val", nothing, limit)
    assert analysis.dataset.ids == [dataset.ids[place] for place in places]
    assert sorted(index for _, _, index in analysis.scores) == list(range(len(places)))
    assert analysis.measured_on == measured_on
    head = figures.draw_errors(analysis, run, nothing).axes[2].get_title().replace("\n", " ")
    miou = 100 * figures.scores_from_confusion(analysis.confusion)["miou"]
    assert head.endswith(f"mIoU {miou:.1f} on {measured_on}")


def test_a_set_without_a_labelled_pixel_is_named(dataset, monkeypatch):
    monkeypatch.setattr(figures, "image_scores", lambda *_: None)
    with pytest.raises(UserError, match="no labelled pixel in these images: see --val_image_set"):
        figures.analyse_errors(dataset, "val", nothing)


def test_classes_are_pairs_five_in_a_row(dataset):
    classes = {f"name {number}": dataset.ids[number % 5] for number in range(7)}
    figure = figures.draw_classes(dataset, classes)
    assert len(figure.axes) == 14
    assert [text for text in captions(figure) if text] == list(classes)
    heads = [axes.get_title() for axes in figure.axes]
    assert heads == ["image | ground truth", ""] * 5 + [""] * 4
    tops = [round(axes.get_position(original=True).y0, 6) for axes in figure.axes]
    assert len(set(tops[:10])) == 1 and len(set(tops[10:])) == 1 and tops[0] > tops[10]
    image, target = dataset[1]
    np.testing.assert_array_equal(figure.axes[2].images[0].get_array(), image.permute(1, 2, 0))
    np.testing.assert_array_equal(figure.axes[3].images[0].get_array(), PALETTE[target])
    check_layout(figure)


def test_constant_prediction_scores_by_hand(tmp_path):
    save_mask(
        tmp_path / "SegmentationClass" / "a.png", np.repeat([0, 1, 3, 255], [80, 15, 5, 9])[None]
    )
    dataset = SegmentationDataset(tmp_path, ["a"], ["b", "c", "d", "e"], masks_only=True)
    scores = figures.constant_scores(dataset, 0)
    assert scores["pixel_acc"] == pytest.approx(0.8)
    assert scores["miou"] == pytest.approx(0.8 / 3)  # the class that is nowhere does not count
