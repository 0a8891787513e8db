import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from utils.common.errors import UserError
from utils.loss import (
    LOSSES,
    AuxiliaryLoss,
    CrossEntropyLoss,
    CrossEntropyLovaszLoss,
    DiceLoss,
    FocalLoss,
    LovaszSoftmaxLoss,
    OhemCrossEntropyLoss,
    build_criterion,
    jaccard_slopes,
    median_frequency_weights,
)

ALL = sorted(LOSSES)
NO_WEIGHTS = ("ohem", "dice", "lovasz")
WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 0.25])


def two_classes(probs_of_1: list[float], target: list[int]) -> tuple[Tensor, Tensor]:
    """Logits (1, 2, 1, P) whose softmax is 1 - p and p, and the target (1, 1, P)."""
    p = torch.tensor(probs_of_1)
    return torch.stack([1 - p, p]).log()[None, :, None], torch.tensor(target)[None, None]


def random_batch(seed: int = 0, ignore_index: int = 255) -> tuple[Tensor, Tensor]:
    """Logits (2, 4, 3, 5) in float64 and a target with 4 classes and 6 ignored pixels."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 4, 3, 5, generator=generator, dtype=torch.float64)
    target = torch.arange(30).remainder(4)[torch.randperm(30, generator=generator)]
    target[torch.randperm(30, generator=generator)[:6]] = ignore_index
    return logits, target.reshape(2, 3, 5)


def dot(factors: tuple[float, ...], losses: tuple[float, ...]) -> float:
    return sum(factor * loss for factor, loss in zip(factors, losses, strict=True))


def grad_of(criterion, logits: Tensor, target: Tensor) -> Tensor:
    logits = logits.detach().clone().requires_grad_()
    criterion(logits, target).backward()
    return logits.grad


# Values by hand. p of the right class: 0.8, 0.4, 0.7 for the three pixels of `HAND`.

HAND, ONE_CLASS = ([0.8, 0.4, 0.3], [1, 1, 0]), ([0.8, 0.4, 0.3], [1, 1, 1])
MINUS_LOG_P = (0.2231436, 0.9162907, 0.3566749)
SKEWED = torch.tensor([3.0, 0.5])


@pytest.mark.parametrize(
    ("criterion", "batch", "expected"),
    [
        (CrossEntropyLoss(), HAND, sum(MINUS_LOG_P) / 3),
        # Divided by the sum of the weights; focal shares that divisor.
        (CrossEntropyLoss(class_weights=SKEWED), HAND, dot((0.5, 0.5, 3), MINUS_LOG_P) / 4),
        (FocalLoss(gamma=1, class_weights=SKEWED), HAND, dot((0.1, 0.3, 0.9), MINUS_LOG_P) / 4),
        # (1 - p)^gamma
        (FocalLoss(), HAND, dot((0.04, 0.36, 0.09), MINUS_LOG_P) / 3),
        (FocalLoss(gamma=1), HAND, dot((0.2, 0.6, 0.3), MINUS_LOG_P) / 3),
        (FocalLoss(gamma=0.5), HAND, dot((0.4472136, 0.7745967, 0.5477226), MINUS_LOG_P) / 3),
        (DiceLoss(), HAND, (1 - 2 * 0.7 / (1.5 + 1) + 1 - 2 * (0.8 + 0.4) / (1.5 + 2)) / 2),
        # Class 1: errors 0.6 (inside), 0.3 (outside), 0.2 (inside); Jaccard losses 1/2, 2/3, 1.
        # Class 0: errors 0.6 (outside), 0.3 (inside), 0.2 (outside); Jaccard losses 1/2, 1, 1.
        (LovaszSoftmaxLoss(), HAND, (0.6 / 2 + 0.3 / 6 + 0.2 / 3 + 0.6 / 2 + 0.3 / 2) / 2),
        # Class 1 alone. Dice: |p| = 1.5, |t| = 3. Lovász: every pixel inside, so the mean error.
        (DiceLoss(), ONE_CLASS, 1 - 2 * 1.5 / 4.5),
        (LovaszSoftmaxLoss(), ONE_CLASS, (0.2 + 0.6 + 0.7) / 3),
    ],
)
def test_values_by_hand(criterion, batch, expected):
    assert criterion(*two_classes(*batch)).item() == pytest.approx(expected, rel=1e-6)


# OHEM: p of the right class is 0.9, 0.8, 0.6, 0.3; a fifth pixel, the worst, is ignored.


@pytest.mark.parametrize(
    ("threshold", "min_fraction", "kept"),
    [
        (0.7, 0.25, [2, 3]),  # all that are hard, more than the quarter asked for
        (0.7, 0.75, [1, 2, 3]),  # three quarters, though only two are hard
        (0.7, 0.51, [1, 2, 3]),  # rounded up
        (0.2, 0.25, [3]),  # none is hard
        (0.2, 0.0, []),
        (1.0, 0.0, [0, 1, 2, 3]),
    ],
)
def test_ohem_keeps_exactly_the_hard_pixels(threshold, min_fraction, kept):
    logits, target = two_classes([0.9, 0.2, 0.6, 0.7, 0.01], [1, 0, 1, 0, 255])
    criterion = OhemCrossEntropyLoss(threshold=threshold, min_fraction=min_fraction)
    grad = grad_of(criterion, logits, target)
    assert grad[0, 0, 0].nonzero().flatten().tolist() == kept
    losses = [-math.log(p) for p in (0.9, 0.8, 0.6, 0.3)]
    expected = sum(losses[k] for k in kept) / max(len(kept), 1)
    assert criterion(logits, target).item() == pytest.approx(expected, rel=1e-6)


# Cross entropy and focal against torch


@pytest.mark.parametrize("weights", [None, WEIGHTS.double()], ids=["plain", "weighted"])
@pytest.mark.parametrize("criterion_class", [CrossEntropyLoss, FocalLoss])
def test_gamma_0_equals_torch_cross_entropy_in_value_and_gradient(criterion_class, weights):
    options = {"gamma": 0} if criterion_class is FocalLoss else {}
    criterion = criterion_class(class_weights=weights, **options)
    logits, target = random_batch()

    def reference(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(x, y, weight=weights, ignore_index=255)

    torch.testing.assert_close(
        criterion(logits, target), reference(logits, target), rtol=1e-14, atol=0
    )
    torch.testing.assert_close(
        grad_of(criterion, logits, target), grad_of(reference, logits, target), rtol=0, atol=1e-16
    )


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
def test_gamma_0_equals_the_cross_entropy_loss_bit_for_bit_in_float32(weights):
    logits, target = random_batch()
    logits = logits.float() * 20  # also pixels whose probability rounds to 0 or 1
    ce = CrossEntropyLoss(class_weights=weights)
    focal = FocalLoss(class_weights=weights, gamma=0)
    assert torch.equal(ce(logits, target), focal(logits, target))
    assert torch.equal(grad_of(ce, logits, target), grad_of(focal, logits, target))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gamma", [0.0, 0.01, 0.5, 1.0, 2.0, 5.0])
def test_focal_is_finite_where_p_is_0_or_1(gamma, dtype):
    sure = torch.tensor([[100.0, -100.0]], dtype=dtype).reshape(1, 2, 1, 1)
    criterion = FocalLoss(gamma=gamma)
    right, wrong = torch.zeros(1, 1, 1).long(), torch.ones(1, 1, 1).long()
    assert criterion(sure, right).item() == pytest.approx(0, abs=1e-30)
    assert criterion(sure, wrong).item() == pytest.approx(200)
    assert grad_of(criterion, sure, right).flatten().tolist() == pytest.approx([0, 0], abs=1e-30)
    assert grad_of(criterion, sure, wrong).flatten().tolist() == pytest.approx([1, -1])


def test_focal_keeps_the_digits_of_1_minus_p_close_to_1():
    # 1 - exp(-1e-5) = 1e-5 - 0.5e-10 + ...; in float32, 1 - exp is 0.1 percent off.
    value = FocalLoss(gamma=1).modulate(torch.tensor([1e-5]))
    assert value.item() == pytest.approx(1e-5 * (1e-5 - 0.5e-10), rel=1e-6, abs=0)


@pytest.mark.parametrize("gamma", [-0.5, math.nan, math.inf])
def test_focal_refuses_a_gamma_below_0_and_names_the_flag(gamma):
    with pytest.raises(UserError, match="--focal_gamma"):
        FocalLoss(gamma=gamma)


def test_divisor_counts_valid_pixels_or_sums_their_weights():
    target = torch.tensor([[[0, 1, 1, 255, 3]]], dtype=torch.uint8)
    assert CrossEntropyLoss().divisor(target).item() == 4
    assert CrossEntropyLoss().divisor(target).dtype == torch.float32
    assert FocalLoss(class_weights=WEIGHTS).divisor(target).item() == 0.5 + 2 + 2 + 0.25
    assert FocalLoss(class_weights=WEIGHTS).divisor(target.fill_(255)).item() == 0


def test_shares_weighted_by_their_divisors_give_the_loss_of_the_whole_batch():
    criterion = FocalLoss(class_weights=WEIGHTS.double())
    logits, target = random_batch()
    target[0, :2] = 255  # the halves differ in their number of valid pixels
    shares = [(logits[k : k + 1], target[k : k + 1]) for k in (0, 1)]
    divisors = [criterion.divisor(share_target) for _, share_target in shares]
    total = sum(criterion(*share) * n for share, n in zip(shares, divisors, strict=True))
    torch.testing.assert_close(total / sum(divisors), criterion(logits, target), rtol=1e-7, atol=0)


def test_weight_0_classes_take_no_part_and_alone_give_0():
    criterion = CrossEntropyLoss(class_weights=torch.tensor([0.0, 1.0]))
    logits, target = two_classes(*HAND)
    assert criterion(logits, target).item() == pytest.approx((0.2231436 + 0.9162907) / 2, rel=1e-6)
    nothing = torch.zeros_like(target)
    assert criterion(logits, nothing).item() == 0
    assert not grad_of(criterion, logits, nothing).any()


# Dice and Lovász


@pytest.mark.parametrize("name", ["dice", "lovasz"])
def test_perfect_prediction_costs_nothing(name):
    _, target = random_batch()
    one_hot = F.one_hot(target.where(target != 255, 0), 4).movedim(-1, 1)
    assert LOSSES[name]()(one_hot * 200.0, target).item() == pytest.approx(0, abs=1e-7)
    assert LOSSES[name]()(one_hot * -200.0, target).item() == pytest.approx(1, abs=1e-7)


def test_jaccard_slopes_are_exact_in_float32_over_many_pixels():
    generator = torch.Generator().manual_seed(0)
    # All different: among equal ones any order is right.
    errors = torch.randperm(100_000, generator=generator) / 100_000
    inside = torch.rand(100_000, generator=generator) < 0.1
    order = errors.argsort(descending=True)
    wrong = inside[order].double()
    jaccard = 1 - (wrong.sum() - wrong.cumsum(0)) / (wrong.sum() + (1 - wrong).cumsum(0))
    expected = jaccard.diff(prepend=torch.zeros(1, dtype=torch.float64))
    slopes = jaccard_slopes(inside[order]).double()
    torch.testing.assert_close(slopes, expected, rtol=1e-6, atol=1e-14)


def test_jaccard_slopes_of_a_single_pixel_are_finite():
    assert jaccard_slopes(torch.tensor([True])).tolist() == [1.0]


# Every loss

CRITERIA = {
    **{name: loss() for name, loss in LOSSES.items()},
    "ce, weighted": CrossEntropyLoss(class_weights=WEIGHTS.double()),
    **{
        f"focal {gamma}, weighted": FocalLoss(class_weights=WEIGHTS.double(), gamma=gamma)
        for gamma in (0.5, 1.0, 3.0)
    },
}
every_loss = pytest.mark.parametrize("criterion", CRITERIA.values(), ids=CRITERIA)


@every_loss
def test_gradient_agrees_with_finite_differences(criterion):
    logits, target = random_batch()
    logits.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: criterion(x, target), logits, atol=1e-8, fast_mode=True
    )


@pytest.mark.parametrize("ignore_index", [255, -100, 3])
@pytest.mark.parametrize("name", ALL)
def test_logits_of_ignored_pixels_change_nothing(name, ignore_index):
    criterion = LOSSES[name](ignore_index=ignore_index)
    logits, target = random_batch(ignore_index=ignore_index)
    ignored = (target == ignore_index)[:, None].expand_as(logits)
    changed = logits.where(~ignored, 50 * logits.flip(1))
    assert torch.equal(criterion(logits, target), criterion(changed, target))
    grad = grad_of(criterion, changed, target)
    assert not grad[ignored].any()
    assert grad[~ignored].any()


@every_loss
def test_ignored_pixels_count_as_if_they_were_not_there(criterion):
    logits, target = random_batch()
    valid = target != 255
    some = logits.movedim(1, 0)[:, valid][None, :, None]  # (1, C, 1, P)
    expected = criterion(some, target[valid][None, None])
    torch.testing.assert_close(criterion(logits, target), expected, rtol=1e-12, atol=0)


@every_loss
def test_batch_without_valid_pixel_gives_0_and_zero_gradients(criterion):
    logits, target = random_batch()
    target.fill_(255)
    assert criterion(logits, target).item() == 0
    assert torch.equal(grad_of(criterion, logits, target), torch.zeros_like(logits))


@every_loss
def test_every_integer_type_of_target_gives_the_same(criterion):
    logits, target = random_batch()
    for dtype in (torch.uint8, torch.int16, torch.int32):
        assert torch.equal(criterion(logits, target.to(dtype)), criterion(logits, target))


@pytest.mark.parametrize("name", ALL)
def test_negative_ignore_index_does_not_catch_a_class_of_a_uint8_target(name):
    logits = torch.zeros(1, 200, 1, 1)  # -100 and class 156 are one byte
    target = torch.full((1, 1, 1), 156, dtype=torch.uint8)
    assert LOSSES[name](ignore_index=-100)(logits, target).item() > 0.9


@pytest.mark.parametrize("name", ALL)
def test_float64_stays_float64_and_float32_agrees_with_it(name):
    logits, target = random_batch()
    double, single = (LOSSES[name]()(x, target) for x in (logits, logits.float()))
    assert (double.dtype, single.dtype) == (torch.float64, torch.float32)
    torch.testing.assert_close(single.double(), double, rtol=1e-6, atol=0)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ALL)
def test_half_precision_logits_are_computed_in_float32(name, dtype, autocast):
    logits, target = random_batch()
    logits = logits.to(dtype)
    expected = LOSSES[name]()(logits.float(), target)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        value = LOSSES[name]()(logits, target)
    assert value.dtype == torch.float32
    assert torch.equal(value, expected)
    grad = grad_of(LOSSES[name](), logits, target)
    assert grad.dtype == dtype and grad.isfinite().all() and grad.any()


@pytest.mark.parametrize(
    ("logits_shape", "target_shape", "dtype"),
    [
        ((2, 4, 3, 5), (2, 3, 4), torch.int64),
        ((2, 4, 3, 5), (2, 1, 3, 5), torch.int64),
        ((4, 3, 5), (3, 5), torch.int64),
        ((2, 4, 3, 5), (2, 3, 5), torch.float32),
    ],
)
def test_shapes_and_types_that_do_not_fit_are_named(logits_shape, target_shape, dtype):
    with pytest.raises(ValueError, match=r"integer target \(N, H, W\)") as error:
        CrossEntropyLoss()(torch.zeros(logits_shape), torch.zeros(target_shape, dtype=dtype))
    assert str(error.value).endswith(f"{logits_shape} and {dtype} {target_shape}")


# build_criterion


def test_ce_lovasz_is_the_sum_of_both():
    logits, target = random_batch()
    weights = WEIGHTS.double()
    parts = [CrossEntropyLoss(class_weights=weights), LovaszSoftmaxLoss()]
    value = CrossEntropyLovaszLoss(class_weights=weights)(logits, target)
    assert value.item() == pytest.approx(sum(part(logits, target).item() for part in parts))


def test_auxiliary_loss_adds_the_second_logits_with_their_weight():
    logits, target = random_batch()
    other, _ = random_batch(seed=1)
    criterion = CrossEntropyLoss()
    value = AuxiliaryLoss(criterion, 0.4)((logits, other), target)
    expected = criterion(logits, target) + 0.4 * criterion(other, target)
    assert value.item() == pytest.approx(expected.item())
    assert AuxiliaryLoss(criterion, 0.4).divisor(target) == criterion.divisor(target)
    assert not hasattr(AuxiliaryLoss(LovaszSoftmaxLoss(), 0.4), "divisor")


def test_build_criterion_passes_each_loss_what_it_uses():
    for name, criterion_class in LOSSES.items():
        criterion = build_criterion(name, ignore_index=7)
        assert type(criterion) is criterion_class
        assert criterion.ignore_index == 7
    assert build_criterion("focal").gamma == 2
    focal = build_criterion("focal", class_weights=WEIGHTS, focal_gamma=0.0)
    assert focal.gamma == 0
    assert focal.class_weights is WEIGHTS
    assert build_criterion("ce", class_weights=WEIGHTS).class_weights is WEIGHTS


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [(name, {"class_weights": WEIGHTS}, "--class_weights.*--loss ce") for name in NO_WEIGHTS]
    + [(name, {"focal_gamma": 2.0}, "--focal_gamma.*--loss focal") for name in ("ce", *NO_WEIGHTS)],
)
def test_what_a_loss_cannot_use_is_refused(name, options, words):
    with pytest.raises(UserError, match=f"^--loss {name} [^\n]*{words}[^\n]*$"):
        build_criterion(name, **options)


def test_class_weights_move_with_the_module_but_are_no_part_of_its_state():
    criterion = CrossEntropyLoss(class_weights=WEIGHTS)
    assert criterion.to("meta").class_weights.device.type == "meta"
    assert criterion.state_dict() == {}


# Class weights


@pytest.mark.parametrize(
    ("pixels", "of_images", "expected"),
    [
        # Frequencies 0.6, 0.2, 0.2, 0.05, without the class that never occurs.
        ([60, 20, 10, 0, 5], [100, 100, 50, 0, 100], [1 / 3, 1, 1, 0, 4]),
        # The median of an even number is the mean of the middle two.
        ([30, 10], [40, 40], [0.5 / 0.75, 0.5 / 0.25]),
    ],
)
def test_median_frequency_divides_the_median_by_the_frequency(pixels, of_images, expected):
    weights = median_frequency_weights(torch.tensor(pixels), torch.tensor(of_images))
    assert weights.dtype == torch.float32
    assert weights.tolist() == pytest.approx(expected)


def test_no_class_at_all_is_an_error():
    with pytest.raises(UserError, match="--class_weights median_frequency"):
        median_frequency_weights(torch.zeros(3).long(), torch.zeros(3).long())
