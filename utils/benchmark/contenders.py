"""What the benchmark compares: this project and the reference mode, on the same inputs.

This project is what `main.py` and `predict.py` build and call, and nothing else.
"""

import argparse
import copy
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from itertools import cycle, islice

import torch
from torch import nn
from torch.utils.data import DataLoader

from datasets.base import IGNORE_INDEX, SegmentationDataset
from datasets.image_files import read_image
from datasets.loader import (
    EvaluationData,
    LoaderSettings,
    batches_per_epoch,
    build_train_loader,
    build_val_loader,
)
from network._deeplab import DeepLab
from network.fusion import fuse_for_inference
from utils.benchmark import ancestor as reference
from utils.benchmark.timing import Contender, Run, count_gflop, decoders, matrix_product
from utils.engine import evaluate
from utils.loss import build_criterion
from utils.metrics import StreamSegMetrics
from utils.optim import build_optimizer, build_scheduler
from utils.precision import DTYPES
from utils.predictor import Predictor
from utils.training_state import TrainingState

LR, BACKBONE_LR_FACTOR = 0.01, 0.1
SEED = 0  # of order and augmentation
VAL_BATCH_SIZE = 8  # main.py's default
NUM_BATCHES = 4  # different ones that wait in memory

Batches = Iterable[list[torch.Tensor]]


@dataclasses.dataclass
class Setup:
    """What all comparisons share.

    Attributes:
        args: the flags of `utils.benchmark.__main__`, complete.
        device: where the model runs.
        precisions: those of this project; the first is that of the step autocast.
        model: the weights that all start from, on the CPU.
        train_set: with the training transform of `main.py`.
        val_set: whole images.
    """

    args: argparse.Namespace
    device: torch.device
    precisions: list[str]
    model: DeepLab
    train_set: SegmentationDataset
    val_set: SegmentationDataset

    @property
    def crop_size(self) -> tuple[int, int]:
        """Height and width of a training crop."""
        return self.args.crop_size, self.args.crop_size

    @property
    def pin_memory(self) -> bool:
        """Whether the loader gives pinned memory, as in `main.py`."""
        return self.device.type == "cuda"

    def copy_model(self, channels_last: bool = True) -> DeepLab:
        """The weights on the device."""
        layout = torch.channels_last if channels_last else torch.contiguous_format
        return copy.deepcopy(self.model).to(self.device, memory_format=layout)

    def chain(self, workload: str) -> list[reference.Steps]:
        """The steps of each contender in the reference mode: none, then one more each time."""
        steps = [step for step in self.args.steps if workload in reference.STEPS[step]]
        return [tuple(steps[:count]) for count in range(len(steps) + 1)]


def name_of(steps: reference.Steps) -> str:
    """Of a contender in the reference mode: its last step."""
    return f"+ {steps[-1]}" if steps else "reference"


def compare_models(
    setup: Setup,
    workload: str,
    images: int,
    gflop: float,
    build_reference: Callable[[Setup, str, reference.Steps], Run],
    build_project: Callable[[Setup, str], Run],
) -> list[Contender]:
    """The reference mode with more and more steps, this project, and the matrix products.

    Args:
        setup: which steps and precisions.
        workload: decides which steps apply.
        images: in one run.
        gflop: 10^9 FLOPs in one run.
        build_reference: from the precision and the steps.
        build_project: from the precision.
    """
    contenders = []
    for steps in setup.chain(workload):
        precision = setup.precisions[0] if "autocast" in steps else "fp32"
        build = partial(build_reference, setup, precision, steps)
        below = name_of(steps[:-1]) if steps else None
        limit = f"matrix product, {precision}"
        contenders.append(Contender(name_of(steps), build, images, gflop, (limit,), below))
    for precision in setup.precisions:
        name, limit = f"this project, {precision}", f"matrix product, {precision}"
        build = partial(build_project, setup, precision)
        contenders.append(Contender(name, build, images, gflop, (limit,)))
    used = dict.fromkeys(item.ceilings[0].partition(", ")[2] for item in contenders)
    products = [matrix_product(name, setup.args.matrix_size, setup.device) for name in used]
    # The limits first: they load torch's libraries, whose memory would count as the reference's.
    return [*products, *contenders]


def compare_training(setup: Setup) -> list[Contender]:
    """Iterations on batches in the host's memory: copy, forward, backward, step."""
    args = setup.args
    shape = (args.batch_size, 3, *setup.crop_size)
    gflop = args.iterations * count_gflop(setup.model, shape, training=True)
    batches = host_batches(setup, args.iterations)
    return compare_models(
        setup,
        "train",
        args.iterations * args.batch_size,
        gflop,
        partial(train_reference, batches=batches),
        partial(train_project, batches=pinned(batches) if setup.pin_memory else batches),
    )


def host_batches(setup: Setup, number: int) -> list[list[torch.Tensor]]:
    """Training batches (images uint8, targets uint8, indices) from the loader, over and over."""
    batch_size = setup.args.batch_size
    samples = repeat_samples(setup.train_set, min(number, NUM_BATCHES) * batch_size)
    loader = train_epoch(samples, LoaderSettings(batch_size, SEED))
    return list(islice(cycle(list(loader)), number))


def train_epoch(samples: SegmentationDataset, settings: LoaderSettings) -> DataLoader:
    """The training loader of `main.py`, for one epoch."""
    last = batches_per_epoch(samples, settings.batch_size)
    return build_train_loader(samples, settings, 0, last)


def pinned(batches: Batches) -> list[list[torch.Tensor]]:
    """Batches as a loader with `pin_memory` gives them."""
    return [[tensor.pin_memory() for tensor in batch] for batch in batches]


def train_project(setup: Setup, precision: str, batches: Batches) -> Run:
    """What `main.py` builds for training, and its loop over these batches."""
    device = setup.device
    model = setup.copy_model()
    optimizer = build_optimizer(model, LR, BACKBONE_LR_FACTOR, fused=precision != "fp16")
    state = TrainingState(
        argparse.Namespace(precision=precision, compile=setup.args.compile),
        setup.train_set.class_names,
        device,
        model,
        build_criterion("ce", IGNORE_INDEX).to(device),
        optimizer,
        build_scheduler(optimizer, "step", step_size=1000, total_itrs=5000),
    )

    def run() -> None:
        for batch in batches:
            state.step(batch)

    return run


def train_reference(setup: Setup, precision: str, steps: reference.Steps, batches: Batches) -> Run:
    """The same iterations in the reference mode, the same images as floats."""
    device = setup.device
    if "uint8" not in steps:
        batches = [
            [reference.normalize(images).contiguous(), *others] for images, *others in batches
        ]
    if "no_waiting" in steps and setup.pin_memory:
        batches = pinned(batches)
    model = setup.copy_model("channels_last" in steps)
    criterion = nn.CrossEntropyLoss(ignore_index=IGNORE_INDEX)
    optimizer = reference.build_optimizer(model, LR, BACKBONE_LR_FACTOR)
    scheduler = build_scheduler(optimizer, "step", step_size=1000, total_itrs=5000)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    return lambda: reference.train(
        model, criterion, batches, optimizer, scheduler, scaler, precision, device, steps
    )


def compare_evaluation(setup: Setup) -> list[Contender]:
    """Whole images of several sizes, from the files to the confusion matrix."""
    images, gflop = len(setup.val_set), forward_gflop(setup, setup.val_set)
    return compare_models(setup, "eval", images, gflop, evaluate_reference, evaluate_project)


def evaluate_project(setup: Setup, precision: str) -> Run:
    """The evaluation of `main.py`."""
    val_set = setup.val_set
    model = setup.copy_model()
    settings = LoaderSettings(
        VAL_BATCH_SIZE, num_workers=setup.args.num_workers, pin_memory=setup.pin_memory
    )
    loader = build_val_loader(val_set, val_set.image_sizes(), settings)

    def run() -> StreamSegMetrics:
        return evaluate(Predictor(model, precision), EvaluationData(val_set, loader))

    return run


def evaluate_reference(setup: Setup, precision: str, steps: reference.Steps) -> Run:
    """The same images in the reference mode."""
    val_set = setup.val_set
    model = reference_model(setup, precision, steps)
    loader = reference.build_val_loader(
        val_set,
        val_set.image_sizes(),
        VAL_BATCH_SIZE,
        setup.args.num_workers,
        setup.pin_memory,
        steps,
    )
    return lambda: reference.evaluate(
        model, loader, val_set.num_classes, precision, setup.device, steps
    )


def reference_model(setup: Setup, precision: str, steps: reference.Steps) -> nn.Module:
    """The model that the reference mode evaluates and predicts with."""
    model = setup.copy_model("channels_last" in steps)
    return fuse_for_inference(model, DTYPES[precision]) if "folded" in steps else model


def compare_prediction(setup: Setup) -> list[Contender]:
    """One image at a time, from the file to class indices in the host's memory."""
    samples = repeat_samples(setup.val_set, setup.args.predict_images)
    paths, gflop = samples.image_paths, forward_gflop(setup, samples)
    return compare_models(
        setup,
        "predict",
        len(paths),
        gflop,
        partial(predict_reference, paths=paths),
        partial(predict_project, paths=paths),
    )


def predict_project(setup: Setup, precision: str, paths: list) -> Run:
    """`predict.py` without what it writes, and without reading ahead: latency, not throughput."""
    predictor = Predictor(setup.copy_model(), precision)
    return lambda: [
        predictor(read_image(path)[None].to(setup.device))[0].cpu().numpy() for path in paths
    ]


def predict_reference(setup: Setup, precision: str, steps: reference.Steps, paths: list) -> Run:
    """The same files in the reference mode."""
    model = reference_model(setup, precision, steps)
    return lambda: [
        reference.predict(model, path, precision, setup.device, steps) for path in paths
    ]


def forward_gflop(setup: Setup, samples: SegmentationDataset) -> float:
    """10^9 FLOPs of predicting each image at its size."""
    sizes = Counter(samples.image_sizes())
    counts = (
        number * count_gflop(setup.model, (1, 3, *size), training=False)
        for size, number in sizes.items()
    )
    return sum(counts)


def compare_data(setup: Setup) -> list[Contender]:
    """Training samples from the files to batches, by one worker process."""
    batch_size = setup.args.batch_size
    number = max(setup.args.data_images // batch_size, 1) * batch_size
    samples = repeat_samples(setup.train_set, number)

    def build_project() -> Run:
        return exhaust(train_epoch(samples, LoaderSettings(batch_size, SEED, num_workers=1)))

    def build_reference(steps: reference.Steps) -> Run:
        return exhaust(
            reference.build_train_loader(
                samples, setup.crop_size, batch_size, SEED, num_workers=1, steps=steps
            )
        )

    limits = decoders(samples.image_paths)
    ceilings = tuple(item.name for item in limits)
    contenders = []
    for steps in setup.chain("data"):
        below = name_of(steps[:-1]) if steps else None
        build = partial(build_reference, steps)
        contenders.append(
            Contender(name_of(steps), build, number, number, ceilings, below, "files")
        )
    contenders.append(
        Contender("this project", build_project, number, number, ceilings, unit="files")
    )
    return [*limits, *contenders]


def exhaust(loader: Batches) -> Run:
    """Take all batches, and do nothing with them."""
    return lambda: sum(len(images) for images, _, _ in loader)


def compare_loader(setup: Setup) -> list[Contender]:
    """Training on batches that lie on the device, and on those of the loader."""
    args, precision = setup.args, setup.precisions[0]
    number = args.loader_iterations * args.batch_size  # of images

    def build_resident() -> Run:
        batches = [
            [images.to(setup.device), targets.to(setup.device), indices]
            for images, targets, indices in host_batches(setup, NUM_BATCHES)
        ]
        batches = list(islice(cycle(batches), args.loader_iterations))
        return train_project(setup, precision, batches)

    def build_loaded() -> Run:
        samples = repeat_samples(setup.train_set, number)
        settings = LoaderSettings(args.batch_size, SEED, args.num_workers, setup.pin_memory)
        return train_project(setup, precision, train_epoch(samples, settings))

    return [
        Contender(f"batches on the device, {precision}", build_resident, number),
        Contender(f"batches from the loader, {precision}", build_loaded, number),
    ]


def repeat_samples(dataset: SegmentationDataset, number: int) -> SegmentationDataset:
    """The first `number` samples, from the start again if there are fewer."""
    repeated = copy.copy(dataset)
    for name in ("ids", "image_paths", "target_paths"):
        setattr(repeated, name, list(islice(cycle(getattr(dataset, name)), number)))
    return repeated


# What is compared: its title, and who takes part.
WORKLOADS: dict[str, tuple[str, Callable[[Setup], list[Contender]]]] = {
    "train": ("training step", compare_training),
    "eval": ("evaluation, whole images", compare_evaluation),
    "predict": ("prediction, batch 1, from the file", compare_prediction),
    "data": ("input pipeline, one worker", compare_data),
    "loader": ("training, is the device starved?", compare_loader),
}
