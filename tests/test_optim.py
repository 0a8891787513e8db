import pytest
import torch

from network.modeling import build_model
from utils.optim import build_optimizer, build_scheduler


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
