"""The figures of predictions, drawn with a predictor whose answers are known."""

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.base import SegmentationDataset
from datasets.colours import PALETTE
from datasets.voc import CLASS_NAMES, VOCSegmentation
from tests.conftest import make_voc, save_mask
from tests.utils.report.test_image_grid import LONG, check_layout
from tests.utils.report.test_runs import make_run
from utils.common.errors import UserError
from utils.report import figures
from utils.report.image_grid import WRONG_COLOR, color_map, photo
from utils.sam.mask_files import Masks, save_masks

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("voc")
    make_voc(root, num_train=21, num_val=5)
    return VOCSegmentation(root, "val")


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / LONG, (0.1, 0.6612))


class AllBackground:
    """A predictor that sees nothing."""

    device = CPU

    def __call__(self, images):
        return torch.zeros(images.shape[0], *images.shape[2:], dtype=torch.uint8)


nothing = AllBackground()


def background_ious(dataset):
    """By hand: the background's IoU, halved, since the only object of each image has 0."""
    return [float((t == 0).sum() / (t != 255).sum()) / 2 for _, t in dataset]


def save_full_masks(path, size, number):
    """Write so many masks, all of the whole image."""
    names = ("boxes", "predicted_iou", "stability", "points", "prompt_boxes", "classes")
    arrays = {name: np.zeros(number) for name in names}
    save_masks(path, Masks(tuple(size), [np.array([0, size[0] * size[1]])] * number, **arrays))


def captions(figure):
    return [axes.get_xlabel() for axes in figure.axes]


def test_an_images_miou_takes_the_classes_of_its_target():
    target = torch.zeros(10, 10, dtype=torch.uint8)
    target[:5] = 7
    target[0, 0] = 255
    pred = target.clone()
    pred[0, 0], pred[9, :4] = 3, 1  # four stray pixels of a class that is not there
    colours = PALETTE[:21]
    panel = figures.prediction(target, pred, colours)  # not 64, with 0 for the third
    assert panel.caption == "mIoU 96.0, acc. 96.0 %"  # (1 + 46 / 50) / 2 and 95 / 99
    np.testing.assert_array_equal(panel.image, PALETTE[pred])
    void = torch.full((3, 3), 255)
    assert figures.prediction(void, pred[:3, :3], colours).caption == "no labelled pixel"
    assert figures.ground_truth(target, colours).caption == "2 classes"
    assert figures.ground_truth(torch.tensor([[3, 255]]), colours).caption == "1 class"


def test_comparison_shows_images_targets_and_predictions(dataset, run):
    ids = [dataset.ids[1], dataset.ids[2]]
    figure = figures.draw_comparison(dataset, ids, [(run, nothing)] * 2)
    arrays = [axes.images[0].get_array() for axes in figure.axes]
    assert len(arrays) == 8
    expected = background_ious(dataset)
    for place, index in ((0, 1), (4, 2)):
        row, (image, target) = arrays[place : place + 4], dataset[index]
        np.testing.assert_array_equal(row[0], image.permute(1, 2, 0))
        np.testing.assert_array_equal(row[1], PALETTE[target])
        assert not row[2].any() and row[2].shape == row[1].shape
        score = f"mIoU {100 * expected[index]:.1f}, acc. {200 * expected[index]:.1f} %"
        assert captions(figure)[place : place + 4] == [
            dataset.ids[index], "2 classes", score, score,
        ]  # fmt: skip
    shown = {CLASS_NAMES[v] for i in (1, 2) for v in dataset[i][1].unique() if v != 255}
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert set(legend) == shown | {"background", "void"}
    check_layout(figure)


def test_heads_are_lettered_and_name_the_loss_over_its_miou(dataset, tmp_path):
    settings = {"loss": "focal", "focal_gamma": 2, "model": "deeplabv3plus_resnet50"}
    runs = [
        make_run(tmp_path / "first", (0.1, 0.6512)),
        make_run(tmp_path / "second", (0.7,), **settings),
    ]
    models = [(run, nothing) for run in runs]
    figure = figures.draw_comparison(dataset, dataset.ids[:1], models)
    assert [axes.get_title() for axes in figure.axes] == [
        "(a) image", "(b) ground truth", "(c) cross entropy\nmIoU 65.1",
        "(d) focal loss\nmIoU 70.0",
    ]  # fmt: skip


def test_the_column_of_sam_counts_the_masks(dataset, run, tmp_path):
    pictures = [tmp_path / f"{sample}.png" for sample in dataset.ids[:2]]
    for number, path in enumerate(pictures):
        Image.new("RGB", (9, 7), (9, 8, 7)).save(path)
        save_full_masks(path.with_suffix(".npz"), (7, 9), 7 + number)
    figure = figures.draw_comparison(dataset, dataset.ids[:2], [(run, nothing)], pictures)
    assert figure.axes[3].get_title() == "(d) masks of SAM"
    assert captions(figure)[3::4] == ["7 masks", "8 masks"]
    assert figure.axes[7].images[0].get_array()[0, 0].tolist() == [9, 8, 7]


def test_errors_are_sorted_by_the_images_miou(dataset):
    order, confusion = figures.analyse_errors(dataset, nothing)
    expected = background_ious(dataset)
    assert order == sorted(range(5), key=lambda index: (expected[index], index))
    labelled = sum(int((target != 255).sum()) for _, target in dataset)
    assert int(confusion.sum()) == int(confusion[:, 0].sum()) == labelled
    figure = figures.draw_errors(dataset, order, nothing, 0.123)
    assert len(figure.axes) == 4 * 5  # of five images three are the worst, two the best
    ranks = ["worst 1", "worst 2", "worst 3", "best 1", "best 2"]
    order = [order[place] for place in (0, 1, 2, 4, 3)]
    assert captions(figure)[::4] == [
        f"{rank}: {dataset.ids[index]}" for rank, index in zip(ranks, order, strict=True)
    ]
    wrong = (figure.axes[3].images[0].get_array() == WRONG_COLOR).all(-1)
    _, target = dataset[order[0]]
    np.testing.assert_array_equal(wrong, (target != 0) & (target != 255))
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend[-3:] == ["void", "wrong", "right"]
    heads = [axes.get_title() for axes in figure.axes[:4]]
    assert heads[2:] == ["(c) prediction\nmIoU 12.3", "(d) errors"]
    check_layout(figure)


@pytest.mark.parametrize(("number", "places"), [(1, [0]), (2, [0, 2]), (4, [0, 1, 2, 3])])
def test_fewer_images_are_spread_over_the_set(dataset, number, places):
    part = figures.thin_out(dataset, number)
    assert part.ids == [dataset.ids[place] for place in places] and len(dataset) == 5
    order, _ = figures.analyse_errors(part, nothing)
    assert sorted(order) == list(range(number))


def test_a_set_without_a_labelled_pixel_is_named(tmp_path):
    save_mask(tmp_path / "SegmentationClass" / "a.png", np.full((9, 9), 255, np.uint8))
    (tmp_path / "JPEGImages").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "JPEGImages" / "a.png")
    dataset = SegmentationDataset(tmp_path, ["a"], ["sky", "road"])
    with pytest.raises(UserError, match="no labelled pixel in these images: see --val_image_set"):
        figures.analyse_errors(dataset, nothing)


def test_classes_are_pairs_five_in_a_row_under_one_head(dataset):
    classes = {name: dataset.ids[n % 5] for n, name in enumerate(CLASS_NAMES[1:7])}
    figure = figures.draw_classes(dataset, classes)
    assert captions(figure) == list(classes)
    assert [axes.get_title() for axes in figure.axes] == ["image | ground truth"] + [""] * 5
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["void"]
    tops = [round(axes.get_position(original=True).y0, 6) for axes in figure.axes]
    assert len(set(tops[:5])) == 1 and tops[5] < tops[0]
    check_layout(figure)


@pytest.mark.parametrize(
    ("size", "box", "top", "left"),
    [
        ((135, 180), (0, 10, 0, 10), 0, 0),  # is 4:3
        ((320, 180), (0, 20, 50, 60), 0, 0),  # an object at the top of a portrait
        ((320, 180), (100, 120, 0, 9), 42, 0),  # its middle is that of the part
        ((320, 180), (300, 320, 0, 9), 185, 0),
        ((135, 360), (0, 9, 150, 241), 0, 105),
        ((135, 360), (0, 0, 0, 0), 0, 90),  # of nothing, the middle
    ],
)
def test_pairs_are_cut_to_4_by_3_around_the_object(size, box, top, left):
    mask = torch.zeros(size, dtype=torch.bool)
    mask[box[0] : box[1], box[2] : box[3]] = True
    image = torch.arange(3 * mask.numel()).remainder(251).byte().view(3, *size)
    target = image[0] % 21
    panel = figures.pair(photo(image), color_map(target, PALETTE), mask, "cat")
    part = slice(top, top + 135), slice(left, left + 180)
    np.testing.assert_array_equal(panel.image[:, :180], image[:, part[0], part[1]].permute(1, 2, 0))
    np.testing.assert_array_equal(panel.image[:, 184:], PALETTE[target[part]])
    assert (panel.image[:, 180:184] == 255).all() and panel.caption == "cat"


def test_portraits_fit_a_page(tmp_path, run):
    for sample in "abcde":
        save_mask(tmp_path / "SegmentationClass" / f"{sample}.png", np.ones((160, 90), np.uint8))
        (tmp_path / "JPEGImages").mkdir(exist_ok=True)
        Image.new("RGB", (90, 160)).save(tmp_path / "JPEGImages" / f"{sample}.png")
    portraits = SegmentationDataset(tmp_path, list("abcde"), ["sky", "road"])
    figure = figures.draw_comparison(portraits, portraits.ids, [(run, nothing)] * 2)
    check_layout(figure)
    road = portraits.colours[1].tolist()
    assert figure.axes[1].images[0].get_array()[0, 0].tolist() == road  # not black, not maroon
