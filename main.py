"""Train a DeepLab, or evaluate one.

    python main.py --dataset shapes                                  # a first run, offline
    python main.py --model deeplabv3plus_resnet50 --loss focal       # the course's run on VOC 2012
    python main.py --recipe strong                                   # a better recipe
    python main.py --dataset custom --data_root DIR                  # a data set of your own
    python main.py --test_only --ckpt runs/NAME/best.pth             # scores alone

A run leaves args.json, log.jsonl, best.pth and last.pth in `runs/<run_name>/`.
"""

import utils  # noqa: F401  # before torch, which reads what it sets

# isort: split
import dataclasses
import math
import os
import shlex
import sys
import time
from argparse import Namespace
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

from datasets import DataSource, build_dataset, build_val_set, check_training_data
from datasets.base import IGNORE_INDEX, SegmentationDataset
from datasets.class_counts import class_statistics
from datasets.loader import (
    TrainBatches,
    build_loader,
    check_batch_size,
    derive_seed,
    size_batches,
    worker_faults_explained,
)
from datasets.transforms import train_transform
from network._deeplab import DeepLab
from network.modeling import build_model
from utils.checkpoint import load_checkpoint, start_from
from utils.common.errors import UserError, run_script
from utils.common.processes import get_rank, is_main
from utils.common.progress import outlive_output, progress, say
from utils.distributed import distributed, main_first, sync_buffers, wrap_model
from utils.engine import LossMeter, evaluate, train_step
from utils.loss import AuxiliaryLoss, build_criterion, median_frequency_weights
from utils.optim import WeightAverage, build_optimizer, build_scheduler
from utils.options import parse_args, settings_to_store
from utils.precision import (
    build_scaler,
    choose_precision,
    describe_precision,
    out_of_memory_explained,
)
from utils.predictor import Predictor
from utils.run_folder import BEST_FILE, RunFolder
from utils.run_records import load_run, summarise
from utils.scores import Evaluation, protocol, score_checkpoint
from utils.signals import Stopped, StopSignals
from utils.training_state import TrainingState, kept_at_the_end

SAVE_SECONDS = 300  # of training between two saves of last.pth that nobody asked for
BAR = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"


@dataclasses.dataclass(frozen=True)
class Data:
    """What a run trains on, what it is evaluated on, and the iterations of an epoch."""

    train_set: SegmentationDataset
    val_set: SegmentationDataset
    val_loader: DataLoader
    per_epoch: int


def main(argv: list[str] | None = None) -> int:
    """Train or evaluate as the flags say; returns the exit status."""
    args = parse_args(__doc__, argv)
    command = shlex.join(["python", "main.py", *(sys.argv[1:] if argv is None else argv)])
    sizes = "" if args.test_only else "--batch_size, --crop_size or "
    remedy = f"lower {sizes}--val_batch_size, or use --precision bf16 or fp16"
    with distributed(args.device) as device, out_of_memory_explained(remedy):
        return test(args, device) if args.test_only else run(args, device, command)


def test(args: Namespace, device: torch.device) -> int:
    """Evaluate a checkpoint, leave its scores beside it and print them."""
    path = Path(args.ckpt or Path(args.runs_dir, args.run_name, BEST_FILE))
    predictor = Predictor.from_checkpoint(path, device, args.precision, args.output_stride)
    score_checkpoint(predictor, Evaluation.of(args))
    return 0


def run(args: Namespace, device: torch.device, command: str) -> int:
    """Everything from the data to the last iteration, top to bottom."""
    outlive_output()
    folder = RunFolder(Path(args.runs_dir, args.run_name), args.tensorboard)
    folder.check(args.resume, args.overwrite)
    args.precision = choose_precision(args.precision, device)  # what auto came to is kept
    set_seed(args.seed, args.deterministic)
    data = build_data(args, device)
    say(f"{describe(args, data, device)}\nresults in {folder.path}")
    model = build_network(args, data.train_set).to(device).to(memory_format=torch.channels_last)
    state = build_state(args, data.train_set, model)
    if args.resume:
        state.load(folder.last)
        say(f"resumed {folder.last} at iteration {state.cur_itrs}")
    if state.cur_itrs > args.total_itrs:
        raise UserError(f"--total_itrs {args.total_itrs}: {state.cur_itrs} are done: give more")

    with folder.held(args.resume, args.overwrite), StopSignals(device) as signals:
        folder.drop_log_after(state.evaluated_itrs)  # it will be logged again
        settings = settings_to_store(args)
        folder.write_settings(command, settings, data.train_set, data.val_set, device)
        with kept_at_the_end(state, folder):
            train(args, data, state, folder, signals)
    if signals.received is None and is_main():
        print(summarise(load_run(folder.path)))
    return signals.exit_status


@worker_faults_explained()
def train(
    args: Namespace, data: Data, state: TrainingState, folder: RunFolder, signals: StopSignals
) -> None:
    """Train to `--total_itrs`, evaluating every `--val_interval` epochs and at the end.

    Raises:
        Stopped: a signal came; the state is that after the last whole iteration.
    """
    device = state.model.mean.device
    network = wrap_model(state.model, device, args.compile)
    criterion = build_loss(args, data.train_set).to(device)
    planned = TrainBatches(
        len(data.train_set), args.batch_size, state.cur_itrs, args.total_itrs, args.seed
    )
    batches = iter(build_loader(data.train_set, planned, args.num_workers, device.type == "cuda"))
    began = time.perf_counter() - state.seconds
    saved = state.seconds if state.cur_itrs else -math.inf
    with progress(None, "train", args.total_itrs, initial=state.cur_itrs, bar_format=BAR) as bar:
        while True:
            at_end = state.cur_itrs == args.total_itrs
            is_due = at_end or state.cur_itrs % (data.per_epoch * args.val_interval) == 0
            if is_due and state.cur_itrs > state.evaluated_itrs:
                validate(args, data, state, folder, signals)
            state.seconds = time.perf_counter() - began
            asked = args.save_interval and state.cur_itrs % args.save_interval == 0
            late = is_due and state.seconds - saved >= SAVE_SECONDS
            if state.cur_itrs and (at_end or asked or late):
                state.save(folder.last)
                saved = state.seconds
            if at_end:
                break
            if signals.stop_together(state.cur_itrs):
                raise Stopped

            batch = next(batches)
            torch.manual_seed(derive_seed(args.seed, get_rank(), state.cur_itrs))  # for dropout
            state.lrs = [float(rate) for rate in state.scheduler.get_last_lr()]
            loss = train_step(
                network, batch, criterion, state.optimizer, state.scaler, args.precision
            )
            state.scheduler.step()
            if state.average is not None:
                state.average.update()
            state.cur_itrs += 1
            state.losses.add(loss, state.cur_itrs)
            folder.plot(state.cur_itrs, {"loss": state.losses.latest, "rate": state.lrs[-1]})
            epoch, epochs = (n / data.per_epoch for n in (state.cur_itrs, args.total_itrs))
            bar.set_description_str(f"epoch {epoch:.1f}/{round(epochs, 1):g}", refresh=False)
            bar.set_postfix_str(losses_text(state), refresh=False)
            bar.update()


def validate(
    args: Namespace, data: Data, state: TrainingState, folder: RunFolder, signals: StopSignals
) -> None:
    """Score the model, keep it in `best.pth` if it is the best so far, and log the scores."""
    start = time.perf_counter()
    state.losses.check()
    state.check_weights()
    sync_buffers(state.evaluated_model)
    predictor = Predictor(state.evaluated_model, args.precision, resize=args.resize)
    counts = evaluate(predictor, data.val_set, data.val_loader, should_stop=signals.stop_together)
    scores = counts.compute()
    if scores["miou"] > state.best_score or state.evaluated_itrs == 0:
        state.save_best(folder.best, scores["miou"])
    train_loss = state.losses.total / (state.cur_itrs - state.evaluated_itrs)
    seconds = time.perf_counter() - start
    device = predictor.device
    memory = torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else None
    record = {
        "iteration": state.cur_itrs,
        "epoch": round(state.cur_itrs / data.per_epoch, 2),
        "train_loss": train_loss,
        "lr": state.lrs[-1],
        "backbone_lr": state.lrs[0],
        **scores,
        "class_iou": dict(zip(state.class_names, scores["class_iou"], strict=True)),
        "seconds": state.seconds + seconds,
        "val_seconds": seconds,
        "max_memory_mb": memory,
    }
    folder.append_log(record)
    state.evaluated_itrs, state.losses.total = state.cur_itrs, 0.0
    say(
        f"epoch {record['epoch']:g}, iteration {state.cur_itrs}: loss {train_loss:.4f}, "
        f"mIoU {100 * scores['miou']:.2f} (best {100 * state.best_score:.2f}), "
        f"pixel acc {100 * scores['pixel_acc']:.2f}, {record['seconds']:.0f} s"
    )


def losses_text(state: TrainingState) -> str:
    """What the bar ends with: the newest loss, and the best score if there is one."""
    best = f", best {100 * state.best_score:.1f}" if state.evaluated_itrs else ""
    return f"loss {state.losses.latest:.3g}{best}"


def set_seed(seed: int, deterministic: bool) -> None:
    """Seed the weights; order, augmentation and dropout have seeds of their own."""
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


def build_data(args: Namespace, device: torch.device) -> Data:
    """The training set, augmented, and the evaluation's data."""
    crop_size = (args.crop_size[0], args.crop_size[-1])
    transform = train_transform(crop_size, args.resize, args.color_jitter)
    source, crop = DataSource.of(args), Evaluation.of(args).crop
    with main_first():  # what is downloaded or drawn comes once
        train_set = build_dataset(source, args.image_set, transform)
        val_set, sizes = build_val_set(source, args.val_image_set, crop)
    check_batch_size(train_set, args.batch_size)
    if is_main():
        check_training_data(train_set, val_set)
    batches = size_batches(sizes, args.val_batch_size)
    val_loader = build_loader(val_set, batches, args.num_workers, device.type == "cuda")
    return Data(train_set, val_set, val_loader, len(train_set) // args.batch_size)


def build_network(args: Namespace, train_set: SegmentationDataset) -> DeepLab:
    """The model to train, from ImageNet's weights, from those of `--ckpt`, or from none."""
    with main_first():  # a download comes once
        model = build_model(
            args.model,
            num_classes=train_set.num_classes,
            output_stride=args.output_stride,
            separable_conv=args.separable_conv,
            backbone_weights=args.backbone_weights,
            bn_momentum=args.bn_momentum,
            aux_head=args.aux_weight > 0,
        )
    if args.ckpt and not args.resume:
        checkpoint = load_checkpoint(args.ckpt)
        say(start_from(model, args.model, checkpoint, train_set.class_names))
    return model


def build_state(args: Namespace, train_set: SegmentationDataset, model: DeepLab) -> TrainingState:
    """The model and what changes it, before the first iteration."""
    rates = args.lr, args.backbone_lr_factor
    optimizer = build_optimizer(model, *rates, args.precision, args.momentum, args.weight_decay)
    schedule = args.lr_policy, args.step_size, args.total_itrs, args.warmup_itrs
    return TrainingState(
        model,
        optimizer,
        build_scheduler(optimizer, *schedule),
        build_scaler(args.precision, model.mean.device),
        WeightAverage(model, args.ema_decay) if args.ema_decay else None,
        LossMeter(),
        settings=vars(args),
        class_names=train_set.class_names,
        colours=train_set.colours,
    )


def build_loss(args: Namespace, train_set: SegmentationDataset) -> nn.Module:
    """The training loss; class weights are counted in the training set."""
    weights = None
    if args.class_weights != "none":
        counts = class_statistics(train_set)
        weights = median_frequency_weights(counts.pixel_counts, counts.image_pixels)
    criterion = build_criterion(args.loss, IGNORE_INDEX, weights, args.focal_gamma)
    return AuxiliaryLoss(criterion, args.aux_weight) if args.aux_weight else criterion


def describe(args: Namespace, data: Data, device: torch.device) -> str:
    """What applies, defaults included."""
    return (
        f"{args.model}, output stride {args.output_stride}, backbone weights "
        f"{args.backbone_weights} (lr x{args.backbone_lr_factor:g}, BN momentum "
        f"{args.bn_momentum:g}), {describe_precision(args.precision, device)}\n"
        f"{args.dataset}: {len(data.train_set)} images of {args.image_set}, evaluated on "
        f"{len(data.val_set)} of {args.val_image_set} ({protocol(Evaluation.of(args).crop)}), "
        f"{data.train_set.num_classes} classes\n"
        f"{args.loss}, SGD lr {args.lr:g}, {args.lr_policy}, {args.total_itrs} iterations of "
        f"{args.batch_size} images, crop {args.crop_size}, resized by {args.resize:g}"
    )


if __name__ == "__main__":
    run_script(main)
