"""What a GPU would do, without one: types, operators and waits of the host, on fake CUDA tensors.

Fake batch norms forget the memory layout. It travels on a CPU as on a GPU, so it is tested there,
on real tensors.
"""

import collections
import contextlib
import math
import re
from functools import partial
from unittest import mock

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from network.modeling import build_model
from utils.distributed import CHECK_EVERY
from utils.engine import LossMeter, train_step
from utils.loss import LOSSES, AuxiliaryLoss, CrossEntropyLoss, FocalLoss, build_criterion
from utils.optim import WeightAverage, build_optimizer

# What makes a host wait for the numbers of its GPU; copies to the host are seen by their devices.
WAITS = re.compile("_local_scalar_dense|nonzero|masked_select|bincount|unique|item|equal")


class Operators(TorchDispatchMode):
    """Counts the operators that run, and notes waits of the host and concatenations."""

    def __init__(self):
        super().__init__()
        self.counts, self.waits, self.cats = collections.Counter(), [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if WAITS.search(name):
            self.waits.append(name)
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.device.type == "cpu" and is_on_cuda(args):
            self.waits.append(f"{name} to the host")
        if name == "cat":
            self.cats.append(([part.dtype for part in args[0]], out.dtype))
        if function.namespace != "prim":
            self.counts[name] += 1
        return out

    def total(self):
        return sum(self.counts.values())


def is_on_cuda(args):
    return any(isinstance(arg, torch.Tensor) and arg.device.type == "cuda" for arg in args)


@contextlib.contextmanager
def fake_cuda():
    """Tensors that are made inside are on a GPU that does not exist; autocast believes in it."""
    with contextlib.ExitStack() as stack:
        patch = mock.patch
        stack.enter_context(patch("torch.cuda.is_bf16_supported", lambda *a, **k: True))
        for module in ("torch.cuda.amp.common", "torch.amp.autocast_mode"):
            there = patch(f"{module}.amp_definitely_not_available", lambda: False, create=True)
            stack.enter_context(there)
        stack.enter_context(FakeTensorMode())
        stack.enter_context(torch.device("cuda"))
        yield


def trace_loss(criterion, num_classes, aux=False):
    """The operators of a loss of logits (2, num_classes, 33, 33) on a fake GPU."""
    logits = torch.empty(2, num_classes, 33, 33).to(memory_format=torch.channels_last)
    target = torch.empty(2, 33, 33, dtype=torch.uint8)
    with Operators() as seen, contextlib.suppress(DynamicOutputShapeException):
        criterion((logits, logits) if aux else logits, target)
    return seen


CRITERIA = {  # by the number of classes
    **{name: lambda _, name=name: build_criterion(name) for name in LOSSES},
    "ce, weighted": lambda number: CrossEntropyLoss(class_weights=torch.ones(number)),
    "focal, weighted": lambda number: FocalLoss(class_weights=torch.ones(number)),
    "ce, auxiliary": lambda _: AuxiliaryLoss(CrossEntropyLoss(), 0.4),
}


@pytest.mark.parametrize("name", CRITERIA)
def test_no_loss_makes_the_host_wait_or_has_operators_that_grow_with_the_classes(name):
    with fake_cuda():
        few, many = (
            trace_loss(CRITERIA[name](number), number, aux="auxiliary" in name)
            for number in (2, 21)
        )
    assert few.waits == many.waits == []
    assert few.counts == many.counts
    assert 5 < many.total() < (120 if "lovasz" in name else 60)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("efficientnet_lite0", "resnet50")]


@pytest.mark.parametrize("name", ["mobilenet", *SLOW])
def test_decoder_joins_in_the_low_level_features_type(name):
    with fake_cuda():
        model = build_model(f"deeplabv3plus_{name}").train()
        images = torch.empty(2, 65, 65, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
        with Operators() as seen, torch.autocast("cuda", torch.bfloat16):
            logits = model(images)
    assert seen.cats == [
        ([torch.bfloat16] * 5, torch.bfloat16),
        ([torch.bfloat16] * 2, torch.bfloat16),
    ]
    assert logits.dtype == torch.float32
    assert seen.waits == []


def test_a_step_has_few_operators_whatever_the_number_of_classes():
    # Backward passes ask for a device, so the tensors are fake ones of a CPU.
    counts = []
    for num_classes in (21, 42):
        with FakeTensorMode():
            model = build_model("deeplabv3plus_mobilenet", num_classes).train()
            optimizer = build_optimizer(model, 0.1, 0.1)
            batch = [torch.empty(2, 3, 65, 65, dtype=torch.uint8), torch.empty(2, 65, 65).byte()]
            scaler = torch.amp.GradScaler("cpu", enabled=False)
            with Operators() as seen:
                train_step(model, batch, build_criterion("ce"), optimizer, scaler, "fp32")
        assert seen.waits == []
        counts.append(seen.counts)
    assert counts[0]["_fused_sgd_"] == 2  # one for each group of parameters
    # 60 convolutions with norms, forwards and backwards, views and gradients included.
    assert counts[0] == counts[1] and counts[0].total() < 1000


# Memory layout, with real tensors.

MODELS = [
    ("deeplabv3_mobilenet", True),
    ("deeplabv3plus_mobilenet", False),
    ("deeplabv3plus_efficientnet_lite0", True),
    pytest.param("deeplabv3plus_resnet50", False, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "separable"), MODELS)
@pytest.mark.parametrize("loss", ["ce", "lovasz"])
def test_inputs_of_convolutions_and_gradients_are_channels_last(name, separable, loss):
    torch.manual_seed(0)
    model = build_model(name, 5, separable_conv=separable).to(memory_format=torch.channels_last)
    found = {}  # is it channels last?

    def note(name, tensor):
        found[name] = tensor.is_contiguous(memory_format=torch.channels_last)

    def watch(module, inputs, output):
        note(f"input of {names[module]}", inputs[0])
        output.register_hook(partial(note, f"gradient of {names[module]}"))

    names = {part: name for name, part in model.named_modules() if isinstance(part, nn.Conv2d)}
    for conv in names:
        conv.register_forward_hook(watch)
    logits = model(torch.randint(256, (2, 33, 49, 3), dtype=torch.uint8).permute(0, 3, 1, 2))
    logits.register_hook(partial(note, "gradient of the logits"))
    build_criterion(loss)(logits, torch.randint(5, (2, 33, 49))).backward()
    assert [name for name, is_last in found.items() if not is_last] == []
    assert len(found) == 2 * len(names) + 1


def test_average_and_sum_of_the_losses_wait_for_no_gpu(monkeypatch):
    def build(_=None):
        return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1))

    monkeypatch.setattr("utils.optim.copy.deepcopy", build)  # fake tensors cannot be copied deep
    with fake_cuda():
        average, losses, loss = WeightAverage(build(), 0.9), LossMeter(), torch.zeros(())
        with Operators() as seen:
            for iteration in range(1, CHECK_EVERY):
                average.update()
                losses.add(loss, iteration)
    assert math.isnan(losses.latest)  # none was read yet
    assert not seen.waits and average.updates == CHECK_EVERY - 1
    assert seen.counts["_foreach_lerp_"] == CHECK_EVERY - 1  # not one for each of the weights
