"""The copy for inference, against the model that it was made from."""

import copy

import pytest
import torch
from torch import nn

from network.fusion import fuse_for_inference
from network.modeling import build_model
from tests.utils.test_checkpoint import randomize

NORMS = nn.BatchNorm2d


def build(name, **options):
    torch.manual_seed(0)
    return randomize(build_model(name, num_classes=3, **options))


def count(model, kind):
    return sum(isinstance(module, kind) for module in model.modules())


@pytest.mark.parametrize(
    ("name", "separable"),
    [
        ("deeplabv3plus_mobilenet", False),
        ("deeplabv3_mobilenet", True),
        ("deeplabv3plus_efficientnet_lite1", True),
        pytest.param("deeplabv3plus_resnet50", False, marks=pytest.mark.slow),
    ],
)
@torch.inference_mode()
def test_folding_batch_norms_changes_no_logit_by_more_than_1e4_of_the_largest(name, separable):
    model = build(name, separable_conv=separable)
    fused = fuse_for_inference(model)
    # Those behind separable convolutions stay.
    assert (count(fused, NORMS) > 0) == separable and count(fused, NORMS) < count(model, NORMS)
    image = torch.randn(2, 3, 65, 49)
    logits = model(image)
    assert torch.allclose(fused(image), logits, rtol=0, atol=1e-4 * float(logits.abs().max()))


def test_the_model_stays_as_it_is():
    model = build("deeplabv3plus_mobilenet").train()
    before = copy.deepcopy(model.state_dict())
    fused = fuse_for_inference(model)
    assert model.training and not fused.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


@torch.inference_mode()
def test_convolutions_in_bf16_compute_what_autocast_would_make_of_them():
    model = build("deeplabv3plus_mobilenet")
    image = torch.randn(1, 3, 65, 65)
    fused = fuse_for_inference(model, torch.bfloat16)
    assert {p.dtype for p in fused.backbone.parameters()} == {torch.bfloat16}
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fused(image), fuse_for_inference(model)(image))


@torch.inference_mode()
def test_batch_norms_of_several_processes_are_folded_as_well():
    model = build("deeplabv3plus_mobilenet")
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    fused = fuse_for_inference(synced)
    assert count(fused, nn.SyncBatchNorm) == 0 < count(synced, nn.SyncBatchNorm)
    image = torch.randn(1, 3, 65, 49)
    assert torch.equal(fused(image), fuse_for_inference(model)(image))
