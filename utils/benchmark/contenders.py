"""What the benchmark compares: the ancestor's way, and what `main.py` and `predict.py` call."""

import argparse
import copy
import dataclasses
from collections.abc import Callable, Iterator
from functools import partial

import torch
from PIL import Image
from torch import nn
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from datasets.base import IGNORE_INDEX, SegmentationDataset
from datasets.loader import (
    Samples,
    TrainBatches,
    build_train_loader,
    build_val_loader,
    default_num_workers,
)
from network._deeplab import DeepLab
from utils.benchmark import ancestor
from utils.common.timing import Contender, Run
from utils.engine import evaluate
from utils.loss import build_criterion
from utils.optim import build_optimizer
from utils.precision import DTYPES
from utils.predictor import Predictor
from utils.training_state import TrainingState

LR, BACKBONE_LR_FACTOR = 0.01, 0.1
SEED = 0  # of order and augmentation
VAL_BATCH_SIZE = 8  # main.py's default


@dataclasses.dataclass(frozen=True)
class Setup:
    """What all comparisons share.

    Attributes:
        args: the flags, complete, with the numbers of `SIZES`.
        device: where the model runs.
        model: the weights that all start from, on the CPU.
        train_set: with the training transform of `main.py`.
        val_set: whole images.
    """

    args: argparse.Namespace
    device: torch.device
    model: DeepLab
    train_set: SegmentationDataset
    val_set: SegmentationDataset

    def copy_model(self, layout: torch.memory_format = torch.channels_last) -> DeepLab:
        """The weights on the device."""
        return copy.deepcopy(self.model).to(self.device).to(memory_format=layout)


def compare_models(
    setup: Setup, images: int, gflop: float, build_ancestor: Callable, build_project: Callable
) -> list[Contender]:
    """The ancestor, this project in each precision, and the limits of each.

    `build_ancestor` takes no argument, `build_project` the precision; a run of both handles so many
    images and 10^9 FLOPs.
    """
    base = Contender("ancestor", build_ancestor, images)
    limits, ours = [], []
    for precision in setup.args.precision:
        # Small products are slower than a network's convolutions: they would be no limit.
        products = large_products(precision, setup) if setup.args.matrix else []
        build = partial(build_project, precision)
        limits += products
        ours.append(Contender(precision, build, images, gflop, base, products))
    # The limits first: they load torch's libraries, whose memory would count as the ancestor's.
    return [*limits, base, *ours]


def large_products(precision: str, setup: Setup) -> list[Contender]:
    """A large matrix product and a large convolution: the library of one of them may be slow."""
    size, side, dtype = setup.args.matrix, 64, DTYPES[precision]
    channels = size // 8
    count = 20 if setup.device.type == "cuda" else 1  # one would be too short to time there

    def build_product() -> Run:
        a, b = torch.randn(2, size, size, device=setup.device).to(dtype)
        return lambda: [torch.mm(a, b.t()) for _ in range(count)]

    def build_convolution() -> Run:
        conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False).requires_grad_(False)
        conv = conv.to(setup.device, dtype).to(memory_format=torch.channels_last)
        x = torch.randn(4, channels, side, side, device=setup.device).to(dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        return lambda: [conv(x) for _ in range(count)]

    work = {"product": size**3, "convolution": 4 * side**2 * 9 * channels**2}
    return [
        Contender(f"{name}, {precision}", build, work=2e-9 * work[name] * count)
        for name, build in (("product", build_product), ("convolution", build_convolution))
    ]


def count_gflop(model: nn.Module, image_shape: tuple[int, ...], training: bool) -> float:
    """10^9 FLOPs of a batch (N, 3, H, W): forward, and in training backward too.

    Two for each multiplication and addition of convolutions; the rest is not counted. Runs on the
    meta device, which computes nothing.
    """
    model = copy.deepcopy(model).to("meta").train(training)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(training):
        logits = model(torch.empty(*image_shape, device="meta"))
        if training:
            logits.sum().backward()
    return counter.get_total_flops() / 1e9


def compare_training(setup: Setup) -> Iterator[list[Contender]]:
    """Iterations on batches in the host's memory: copy, forward, backward, step."""
    shape = (setup.args.batch_size, 3, setup.args.crop_size, setup.args.crop_size)
    gflop = setup.args.iterations * count_gflop(setup.model, shape, training=True)
    yield compare_models(
        setup,
        setup.args.iterations * setup.args.batch_size,
        gflop,
        lambda: train_ancestor(setup, draw_batch(setup)),
        lambda precision: train_project(setup, setup.copy_model(), draw_batch(setup), precision),
    )


def draw_batch(setup: Setup) -> list[torch.Tensor]:
    """Random images uint8 (N, 3, H, W), targets uint8 (N, H, W), indices; as the loader's."""
    size = setup.args.crop_size
    generator = torch.Generator().manual_seed(SEED)
    shape = (setup.args.batch_size, size, size)
    drawn = torch.randint(256, (*shape, 3), generator=generator, dtype=torch.uint8)
    num_classes = setup.train_set.num_classes
    targets = torch.randint(num_classes, shape, generator=generator, dtype=torch.uint8)
    batch = [drawn.permute(0, 3, 1, 2), targets, torch.arange(setup.args.batch_size)]
    return [part.pin_memory() for part in batch] if setup.device.type == "cuda" else batch


def train_project(setup: Setup, model: DeepLab, batch: list[torch.Tensor], precision: str) -> Run:
    """The steps of `main.py`."""
    optimizer = build_optimizer(model, LR, BACKBONE_LR_FACTOR, precision)
    state = TrainingState(
        args=argparse.Namespace(precision=precision, compile=setup.args.compile),
        class_names=(),
        device=setup.device,
        model=model,
        criterion=build_criterion("ce", IGNORE_INDEX),
        optimizer=optimizer,
        scheduler=StepLR(optimizer, 1000),
    )

    def run() -> None:
        for _ in range(setup.args.iterations):
            state.step(batch)

    return run


def train_ancestor(setup: Setup, batch: list[torch.Tensor]) -> Run:
    """The same iterations on the same images as floats."""
    images, targets, _ = batch
    floats = setup.model.normalize(images).contiguous()
    model = setup.copy_model(torch.contiguous_format)
    optimizer = ancestor.build_optimizer(model, LR, BACKBONE_LR_FACTOR)
    return lambda: ancestor.train(model, optimizer, [(floats, targets)] * setup.args.iterations)


def compare_evaluation(setup: Setup) -> Iterator[list[Contender]]:
    """Whole images of several sizes, from the files to the confusion matrix."""
    val_set, workers = setup.val_set, default_num_workers()

    def build_ancestor() -> Run:
        model = setup.copy_model(torch.contiguous_format)
        samples = ancestor.AncestorSamples(val_set)
        loader = DataLoader(samples, num_workers=workers, persistent_workers=workers > 0)
        return lambda: ancestor.evaluate(model, loader, val_set.num_classes)

    def build_project(precision: str) -> Run:
        pin_memory = setup.device.type == "cuda"
        sizes = val_set.image_sizes()
        loader = build_val_loader(val_set, sizes, VAL_BATCH_SIZE, workers, pin_memory)
        model = setup.copy_model()
        return lambda: evaluate(Predictor(model, precision), val_set, loader)

    gflop = forward_gflop(setup, val_set)
    yield compare_models(setup, len(val_set), gflop, build_ancestor, build_project)


def compare_prediction(setup: Setup) -> Iterator[list[Contender]]:
    """One image at a time, from the file to class indices in the host's memory."""
    samples = first_samples(setup.val_set, setup.args.predict_images)
    paths, gflop = samples.image_paths, forward_gflop(setup, samples)

    def build_ancestor() -> Run:
        model = setup.copy_model(torch.contiguous_format)
        return lambda: [ancestor.predict(model, path) for path in paths]

    def build_project(precision: str) -> Run:
        predictor = Predictor(setup.copy_model(), precision)
        return lambda: [predictor.predict_image(path) for path in paths]

    yield compare_models(setup, len(paths), gflop, build_ancestor, build_project)


def forward_gflop(setup: Setup, samples: SegmentationDataset) -> float:
    """10^9 FLOPs of predicting all images: they go with the pixels."""
    pixels = sum(height * width for height, width in samples.image_sizes())
    return pixels / 512**2 * count_gflop(setup.model, (1, 3, 512, 512), training=False)


def first_samples(dataset: SegmentationDataset, number: int) -> SegmentationDataset:
    """A data set of the first samples alone."""
    part = copy.copy(dataset)
    for name in ("ids", "image_paths", "target_paths"):
        setattr(part, name, getattr(dataset, name)[:number])
    return part


def compare_data(setup: Setup) -> Iterator[list[Contender]]:
    """Training samples from the files to batches, by one worker process."""
    size = setup.args.batch_size
    count = len(setup.train_set) // size  # of batches
    number = count * size  # of images
    batches = TrainBatches(len(setup.train_set), size, 0, count, SEED)

    def decode() -> None:
        for path in setup.train_set.image_paths[:number]:
            Image.open(path).convert("RGB")

    def build_project() -> Run:
        loader = build_train_loader(setup.train_set, batches, num_workers=1)
        return lambda: sum(len(images) for images, *_ in loader)

    def build_ancestor() -> Run:
        samples = ancestor.AncestorSamples(setup.train_set, setup.args.crop_size)
        loader = DataLoader(
            Samples(samples, SEED), batch_sampler=batches, num_workers=1, persistent_workers=True
        )
        return lambda: sum(len(images) for images, *_ in loader)

    limit = Contender("decode", lambda: decode, work=number)
    base = Contender("ancestor", build_ancestor, number)
    yield [limit, base, Contender("one worker", build_project, number, number, base, [limit])]
