"""The figures of predictions, drawn with a predictor whose answers are known."""

import numpy as np
import pytest
import torch

from datasets.voc import CLASS_NAMES, PALETTE, VOCSegmentation
from tests.conftest import make_voc
from tests.utils.report.test_image_grid import LONG, check_layout
from tests.utils.report.test_runs import write_run
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


def all_background(images):
    return torch.zeros(images.shape[0], *images.shape[2:], dtype=torch.uint8)


def background_ious(dataset):
    """By hand: the background's IoU, halved, since the only object of each image has 0."""
    ious = []
    for _, target in dataset:
        ious.append(float((target == 0).sum() / (target != 255).sum()) / 2)
    return ious


def texts(figure):
    return [text.get_text() for text in figure.texts]


def test_comparison_shows_images_targets_and_predictions(dataset, run, monkeypatch, tmp_path):
    monkeypatch.setattr(figures, "load_predictor", lambda *_: all_background)
    ids = dataset.ids[1:3]
    figure = figures.draw_comparison(dataset, ids, [run, run], CPU, "fp32")
    arrays = [axes.images[0].get_array() for axes in figure.axes]
    assert len(arrays) == 8
    for row, index in ((arrays[:4], 1), (arrays[4:], 2)):
        image, target = dataset[index]
        np.testing.assert_array_equal(row[0], image.permute(1, 2, 0))
        np.testing.assert_array_equal(row[1], PALETTE[target])
        assert not row[2].any() and row[2].shape == row[1].shape
    heads, captions = texts(figure)[:4], texts(figure)[4:]
    assert heads[:2] == ["RGB", "Ground truth"]
    assert all(head.splitlines()[-1] == "mIoU 66.12" for head in heads[2:])
    expected = background_ious(dataset)
    for place, index in ((0, 1), (1, 2)):
        row = [text for text in captions if text][3 * place : 3 * place + 3]
        assert row == [ids[place], *[f"mIoU {100 * expected[index]:.1f}"] * 2]
    shown = {CLASS_NAMES[v] for i in (1, 2) for v in dataset[i][1].unique() if v != 255}
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert set(legend) == shown | {"background", "void"}
    check_layout(figure)


def test_errors_are_sorted_by_the_images_miou(dataset, run):
    analysis = figures.analyse_errors(dataset, all_background, CPU)
    expected = background_ious(dataset)
    assert analysis.indices == sorted(range(5), key=lambda index: (expected[index], index))
    assert analysis.mious == pytest.approx(sorted(expected))
    labelled = sum(int((target != 255).sum()) for _, target in dataset)
    assert int(analysis.confusion.sum()) == int(analysis.confusion[:, 0].sum()) == labelled
    figure = figures.draw_errors(dataset, analysis, run, all_background, CPU)
    assert len(figure.axes) == 4 * 5  # of five images three are the worst, two the best
    names = [text for text in texts(figure) if text.startswith(("worst", "best"))]
    ranks = ["worst 1", "worst 2", "worst 3", "best 1", "best 2"]
    order = [analysis.indices[place] for place in (0, 1, 2, 4, 3)]
    assert [name.replace("\n", "") for name in names] == [
        f"{rank}: {dataset.ids[index]}" for rank, index in zip(ranks, order, strict=True)
    ]
    wrong = (figure.axes[3].images[0].get_array() == (220, 30, 30)).all(-1)
    _, target = dataset[order[0]]
    np.testing.assert_array_equal(wrong, (target != 0) & (target != 255))
    check_layout(figure)


@pytest.mark.parametrize(("limit", "indices"), [(1, [0]), (2, [0, 2]), (9, [0, 1, 2, 3, 4])])
def test_a_limit_spreads_over_the_set(dataset, limit, indices):
    analysis = figures.analyse_errors(dataset, all_background, CPU, limit)
    assert sorted(analysis.indices) == indices


def test_errors_of_a_single_image_are_drawn(dataset, run):
    analysis = figures.analyse_errors(dataset, all_background, CPU, 1)
    assert len(figures.draw_errors(dataset, analysis, run, all_background, CPU).axes) == 4


def test_classes_are_pairs_five_in_a_row(dataset):
    classes = {f"name {number}": dataset.ids[number % 5] for number in range(7)}
    figure = figures.draw_classes(dataset, classes)
    assert len(figure.axes) == 14
    assert [text for text in texts(figure) if text] == list(classes)
    tops = [round(axes.get_position(original=True).y0, 6) for axes in figure.axes]
    assert len(set(tops[:10])) == 1 and len(set(tops[10:])) == 1 and tops[0] > tops[10]
    image, target = dataset[1]
    np.testing.assert_array_equal(figure.axes[2].images[0].get_array(), image.permute(1, 2, 0))
    np.testing.assert_array_equal(figure.axes[3].images[0].get_array(), PALETTE[target])
    check_layout(figure)


def test_constant_prediction_scores_by_hand():
    scores = figures.constant_scores(torch.tensor([80, 15, 0, 5]), 0)
    assert scores["pixel_acc"] == pytest.approx(0.8)
    assert scores["miou"] == pytest.approx(0.8 / 3)  # the class that is nowhere does not count
