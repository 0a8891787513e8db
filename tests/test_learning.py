"""Training learns what the targets say: the whole network, on the CPU."""

import numpy as np
import pytest
import torch

from datasets.shapes import draw_sample
from network.modeling import build_model
from utils.engine import train_step
from utils.loss import build_criterion
from utils.metrics import StreamSegMetrics
from utils.optim import build_optimizer, build_scheduler
from utils.precision import build_scaler
from utils.predictor import Predictor

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")
NUM_IMAGES, SIDE, RADIUS = 8, 64, 18.0  # pixels
LR = 0.05


@pytest.fixture(scope="module")
def samples():
    """Images uint8 (8, 3, 64, 64), each with one object of a class of its own, and targets."""
    images, targets = [], []
    for index in range(1, NUM_IMAGES + 1):
        objects = [(2 * index, RADIUS)]
        image, target = draw_sample((SIDE, SIDE), objects, np.random.default_rng(index))
        target[target == 2 * index] = index
        images.append(image.transpose(2, 0, 1))
        targets.append(target)
    return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(targets))


def build():
    """The quickest of the networks that see details."""
    torch.manual_seed(0)
    model = build_model("deeplabv3plus_mobilenet", NUM_IMAGES + 1, separable_conv=True)
    return model.to(memory_format=torch.channels_last)


def train(model, images, targets, iterations):
    """Train on all images in every iteration, as they are."""
    optimizer = build_optimizer(model, LR, 1.0)
    scheduler = build_scheduler(optimizer, "poly", 1000, iterations)
    scaler, criterion = build_scaler("fp32", CPU), build_criterion("ce")
    for _ in range(iterations):
        train_step(model.train(), (images, targets), criterion, optimizer, scaler, "fp32")
        scheduler.step()


def score(model, images, targets):
    metrics = StreamSegMetrics(NUM_IMAGES + 1)
    metrics.update(targets, Predictor(model, "fp32")(images))
    return metrics.compute()["miou"]


def test_eight_images_are_learned_by_heart_in_150_iterations(samples):
    model = build()
    train(model, *samples, iterations=150)
    assert score(model, *samples) >= 0.98


def test_targets_of_other_images_destroy_the_score(samples):
    images, targets = samples
    model = build()
    others = targets.roll(1, dims=0)
    train(model, images, others, iterations=75)
    assert score(model, images, others) >= 0.8  # it did learn: what it was told
    assert score(model, images, targets) <= 0.2
