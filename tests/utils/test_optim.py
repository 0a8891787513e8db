import pytest
import torch

from network.modeling import build_model
from utils.common.progress import say_once
from utils.optim import WeightAverage, build_optimizer, build_scheduler


@pytest.fixture(scope="module")
def model():
    return build_model("deeplabv3plus_mobilenet", num_classes=3)


def test_backbone_gets_its_share_of_the_learning_rate(model):
    optimizer = build_optimizer(model, lr=0.01, backbone_lr_factor=0.1)
    backbone, head = optimizer.param_groups
    assert backbone["lr"] == pytest.approx(0.001) and head["lr"] == pytest.approx(0.01)
    assert set(map(id, backbone["params"])) == set(map(id, model.backbone.parameters()))
    assert len(backbone["params"]) + len(head["params"]) == len(list(model.parameters()))
    for group in optimizer.param_groups:
        assert (group["momentum"], group["weight_decay"]) == (0.9, 1e-4)


def rates(model, policy, iterations, **options):
    optimizer = build_optimizer(model, lr=0.01, backbone_lr_factor=0.1)
    scheduler = build_scheduler(optimizer, policy, **options)
    values = []
    for _ in range(iterations):
        values.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return torch.tensor(values)


def test_step_multiplies_by_a_tenth_every_step_size(model):
    values = rates(model, "step", 25, step_size=10, total_itrs=25)
    expected = [0.01] * 10 + [0.001] * 10 + [0.0001] * 5
    assert torch.allclose(values[:, 1], torch.tensor(expected))
    assert torch.allclose(values[:, 0], values[:, 1] / 10)


def test_poly_decays_to_zero_with_power_09(model):
    values = rates(model, "poly", 20, step_size=1, total_itrs=20)
    expected = [0.01 * (1 - i / 20) ** 0.9 for i in range(20)]
    assert torch.allclose(values[:, 1], torch.tensor(expected))


@pytest.mark.parametrize("policy", ["step", "poly"])
def test_warmup_multiplies_the_schedule_by_a_rising_factor(model, policy):
    options = {"step_size": 3, "total_itrs": 20}
    plain = rates(model, policy, 10, **options)
    warm = rates(model, policy, 10, **options, warmup_itrs=4)
    factors = torch.tensor([1 / 5, 2 / 5, 3 / 5, 4 / 5, 1, 1, 1, 1, 1, 1])
    assert torch.allclose(warm, plain * factors[:, None])


def test_average_is_an_exponential_moving_one_of_weights_and_statistics():
    model = torch.nn.BatchNorm1d(1)
    average = WeightAverage(model, decay=0.75)
    expected = None
    for value in (4.0, 8.0, 0.0):
        model.weight.data.fill_(value)
        model.running_mean.fill_(-value)
        average.update()
        expected = value if expected is None else 0.75 * expected + 0.25 * value
    assert expected == 3.75
    assert average.model.weight.item() == 3.75 and average.model.running_mean.item() == -3.75
    assert average.updates == 3


@pytest.mark.parametrize(
    ("policy", "step_size", "warmup_itrs", "words"),
    [
        ("poly", 10, 100, "--warmup_itrs 100: the run ends after 100"),
        ("step", 100, 0, "--step_size 100: the run ends after 100"),
        ("step", 99, 99, ""),  # the last iteration has the first lowered rate
        ("poly", 1000, 0, ""),
    ],
)
def test_what_a_schedule_never_comes_to_is_said(
    model, capsys, policy, step_size, warmup_itrs, words
):
    say_once.cache_clear()
    options = {"step_size": step_size, "total_itrs": 100, "warmup_itrs": warmup_itrs}
    of_head = rates(model, policy, 100, **options)[:, 1]
    said = capsys.readouterr().err
    assert words in said and said.count("note: ") == bool(words)
    if policy == "step":
        assert (of_head.max() > 1.5 * of_head[-1]) == (not words)
