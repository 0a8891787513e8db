import numpy as np
import pytest
import torch

from utils.metrics import (
    StreamSegMetrics,
    format_scores,
    scores_from_confusion,
    target_miou,
)


def test_stream_counts_what_an_independent_loop_counts():
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 22, (3, 17, 19), generator=generator)
    target[target == 21] = 255
    pred = torch.randint(0, 21, (3, 17, 19), generator=generator)
    expected = np.zeros((21, 21), int)
    for t, p in zip(target.flatten().tolist(), pred.flatten().tolist(), strict=True):
        if t != 255:
            expected[t, p] += 1
    for dtype in (torch.uint8, torch.int64):
        stream = StreamSegMetrics(21)
        stream.update(target[:1].to(dtype), pred[:1])
        stream.update(target[1:].to(dtype), pred[1:])
        assert np.array_equal(stream.confusion.numpy(), expected)


def test_scores_by_hand():
    # 10 pixels: class 0 has 6 (5 right), class 1 has 4 (3 right); class 2 is nowhere.
    scores = scores_from_confusion(torch.tensor([[5, 1, 0], [1, 3, 0], [0, 0, 0]]))
    assert scores["pixel_acc"] == pytest.approx(8 / 10)
    assert scores["mean_acc"] == pytest.approx((5 / 6 + 3 / 4) / 2)
    assert scores["class_iou"] == [pytest.approx(5 / 7), pytest.approx(3 / 5), None]
    assert scores["miou"] == pytest.approx((5 / 7 + 3 / 5) / 2)
    assert scores["fw_iou"] == pytest.approx(0.6 * 5 / 7 + 0.4 * 3 / 5)


def test_perfect_and_empty():
    assert scores_from_confusion(torch.diag(torch.tensor([4, 2])))["miou"] == 1.0
    empty = scores_from_confusion(torch.zeros(2, 2, dtype=torch.int64))
    assert (empty["miou"], empty["pixel_acc"], empty["class_iou"]) == (0.0, 0.0, [None, None])


# Class 0: 5 of 6 found, 5 of 6 right; 1: in the target, never predicted; 2: predicted alone; 3: no.
CONFUSION = torch.tensor([[5, 0, 1, 0], [1, 0, 3, 0], [0, 0, 0, 0], [0, 0, 0, 0]])


def test_precision_recall_and_f1_by_hand():
    scores = scores_from_confusion(CONFUSION, detailed=True)
    assert scores["class_precision"] == [pytest.approx(5 / 6), 0.0, 0.0, None]
    assert scores["class_recall"] == [pytest.approx(5 / 6), 0.0, None, None]
    assert scores["class_f1"] == [pytest.approx(10 / 12), 0.0, 0.0, None]
    assert scores["mean_precision"] == scores["mean_f1"] == pytest.approx(5 / 18)
    assert scores["mean_recall"] == scores["mean_acc"] == pytest.approx(5 / 12)
    plain = scores_from_confusion(CONFUSION)
    assert plain.items() <= scores.items() and "class_f1" not in plain


def test_miou_over_the_classes_of_the_ground_truth_leaves_out_what_is_only_predicted():
    assert target_miou(CONFUSION) == (pytest.approx((5 / 7 + 0) / 2), 2)
    assert scores_from_confusion(CONFUSION)["miou"] == pytest.approx((5 / 7 + 0 + 0) / 3)
    assert target_miou(torch.zeros(2, 2, dtype=torch.int64)) == (0.0, 0)


class OnDevice(torch.Tensor):
    """A tensor on a device without float64, such as Apple's."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        result = super().__torch_function__(function, types, args, kwargs or {})
        if isinstance(result, torch.Tensor):
            assert result.dtype != torch.float64, function
            if function is torch.Tensor.cpu:
                return result.as_subclass(torch.Tensor)
        return result


def test_nothing_is_float64_on_a_device():
    with pytest.raises(AssertionError):
        torch.zeros(2).as_subclass(OnDevice).double()
    stream, expected = StreamSegMetrics(3), StreamSegMetrics(3)
    stream.confusion = stream.confusion.as_subclass(OnDevice)
    target, pred = torch.randint(0, 3, (2, 4, 9, 9))
    expected.update(target, pred)
    stream.update(target.as_subclass(OnDevice), pred.as_subclass(OnDevice))
    assert type(stream.confusion) is OnDevice
    assert scores_from_confusion(stream.confusion, True) == scores_from_confusion(
        expected.confusion, True
    )
    assert target_miou(stream.confusion) == target_miou(expected.confusion)


def test_counts_beyond_32_bits_are_exact():
    huge = 2**40
    scores = scores_from_confusion(torch.tensor([[huge, 0], [huge, 2 * huge]]))
    assert scores["class_iou"] == [pytest.approx(1 / 2), pytest.approx(2 / 3)]


def test_table_is_in_percent_and_marks_absent_classes():
    scores = scores_from_confusion(torch.tensor([[5, 1, 0], [1, 3, 0], [0, 0, 0]]))
    table = format_scores(scores, ["background", "cat", "dog"])
    assert "cat          60.00" in table and "dog              -" in table
    assert "mIoU 65.71, pixel acc 80.00, mean acc 79.17, fw IoU 66.86" in table
    scores = scores_from_confusion(CONFUSION, detailed=True)
    table = format_scores(scores, ["background", "cat", "dog", "cow"], detailed=True)
    assert "IoU, precision, recall, F1 by class" in table
    assert "background   71.43   83.33   83.33   83.33\n" in table
    assert "dog           0.00    0.00       -    0.00\n" in table
    assert table.endswith("mean precision 27.78, mean F1 27.78")
