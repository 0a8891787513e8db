import pytest
import torch
from torch import nn

from datasets.loader import build_loader, size_batches
from datasets.voc import VOCSegmentation
from network.modeling import build_model
from tests.conftest import as_process, make_voc
from utils.engine import LossMeter, NonFiniteError, evaluate
from utils.predictor import Predictor
from utils.signals import Stopped

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def val_set(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    make_voc(root, num_val=9)
    return VOCSegmentation(root, "val")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = build_model("deeplabv3plus_mobilenet", num_classes=21)
    model.eval()
    return model.to(memory_format=torch.channels_last)


def confusion(model, dataset, sizes, batch_size, world_size=1):
    total = torch.zeros(21, 21, dtype=torch.int64)
    for rank in range(world_size):
        with as_process(rank, world_size):
            loader = build_loader(dataset, size_batches(sizes, batch_size))
        total += evaluate(Predictor(model, "fp32"), dataset, loader).confusion
    return total


def test_batched_evaluation_scores_exactly_what_batch_1_scores(model, val_set):
    one = confusion(model, val_set, val_set.image_sizes(), batch_size=1)
    assert int(one.sum()) > 10_000 and int((one.sum(0) > 0).sum()) > 1
    assert torch.equal(confusion(model, val_set, val_set.image_sizes(), batch_size=4), one)


def test_evaluation_split_over_processes_counts_the_same(model, val_set):
    one = confusion(model, val_set, val_set.image_sizes(), batch_size=2)
    parts = confusion(model, val_set, val_set.image_sizes(), batch_size=2, world_size=3)
    assert torch.equal(parts, one)


def test_evaluation_is_against_native_targets(model, val_set):
    expected = torch.zeros(21, 21, dtype=torch.int64)
    with torch.inference_mode():
        for image, target in (val_set[index] for index in range(len(val_set))):
            pred = model(image[None]).argmax(1)[0]
            for t, p in zip(target.flatten().tolist(), pred.flatten().tolist(), strict=True):
                if t != 255:
                    expected[t, p] += 1
    assert torch.equal(confusion(model, val_set, val_set.image_sizes(), 3), expected)


def test_evaluation_that_runs_out_of_memory_halves_its_batch(model, val_set, capsys):
    class Small(nn.Conv2d):
        def forward(self, images):
            if len(images) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return model(images)

    sizes = val_set.image_sizes()
    expected = confusion(model, val_set, sizes, batch_size=1)
    assert torch.equal(confusion(Small(3, 2, 1), val_set, sizes, batch_size=4), expected)
    assert "out of memory" in capsys.readouterr().err


def test_evaluation_asks_whether_to_stop_as_often_as_every_process_can(model, val_set, monkeypatch):
    asked = []
    loader = build_loader(val_set, size_batches(val_set.image_sizes(), batch_size=2))
    monkeypatch.setattr("utils.engine.fewest", lambda count, device: count - 1)
    evaluate(Predictor(model, "fp32"), val_set, loader, should_stop=asked.append)
    assert asked == list(range(len(loader) - 1))
    with pytest.raises(Stopped):
        evaluate(Predictor(model, "fp32"), val_set, loader, should_stop=lambda number: number == 1)


def test_loss_meter_adds_up_and_keeps_the_newest():
    meter = LossMeter()
    meter.add(torch.tensor(1.0), 1)
    meter.add(torch.tensor(2.5), 2)
    assert (meter.total, meter.latest) == (3.5, 2.5)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_loss_meter_names_the_iteration_of_a_loss_that_is_not_finite(value):
    meter = LossMeter()
    meter.add(torch.tensor(1.0), 7)
    with pytest.raises(NonFiniteError, match=f"^the loss is {value} at iteration 8: lower --lr"):
        meter.add(torch.tensor(float(value)), 8)
    assert meter.total == 1
