"""Train a DeepLab, or evaluate one.

    python main.py --dataset shapes                                  # a first run, offline
    python main.py --model deeplabv3plus_resnet50 --loss focal       # the course's run on VOC 2012
    python main.py --recipe strong                                   # a better recipe
    python main.py --dataset custom --data_root DIR                  # a data set of your own
    python main.py --test_only --ckpt runs/NAME/best.pth             # scores alone

A run leaves args.json, log.jsonl, best.pth and last.pth in `runs/<run_name>/`.
"""

import dataclasses
import math
import os
import shlex
import sys
import time
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from datasets import DataSource, build_dataset, build_val_set, check_training_data
from datasets.base import IGNORE_INDEX, SegmentationDataset
from datasets.class_counts import class_statistics
from datasets.loader import (
    TrainBatches,
    WorkerError,
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
from utils.common.files import read_json, write_json
from utils.common.processes import get_rank, get_world_size, is_main, print_main
from utils.common.progress import outlive_output, progress, say, say_once
from utils.distributed import (
    end_distributed,
    init_distributed,
    main_first,
    sync_buffers,
    wait_for_all,
    wrap_model,
)
from utils.engine import LossMeter, NonFiniteError, evaluate, train_step
from utils.loss import AuxiliaryLoss, build_criterion, median_frequency_weights
from utils.optim import (
    WeightAverage,
    build_optimizer,
    build_scheduler,
    learning_rates,
    schedule_notes,
)
from utils.options import parse_args, settings_to_store
from utils.precision import (
    build_scaler,
    choose_precision,
    describe_precision,
    out_of_memory_explained,
)
from utils.predictor import Predictor
from utils.run_folder import ARGS_FILE, BEST_FILE, RunFolder, describe_environment
from utils.run_records import load_run, summarise
from utils.scores import Evaluation, protocol, score_checkpoint
from utils.signals import Stopped, StopSignals
from utils.training_state import TrainingState

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
    device = init_distributed(args.device)
    sizes = "" if args.test_only else "--batch_size, --crop_size or "
    remedy = f"lower {sizes}--val_batch_size, or use --precision bf16 or fp16"
    try:
        with out_of_memory_explained(device, remedy):
            status = test(args, device) if args.test_only else run(args, device, command)
            wait_for_all()
            return status
    finally:
        end_distributed()


def run_dir_of(args: Namespace) -> Path:
    """The folder of the run."""
    return Path(args.runs_dir) / args.run_name


def test(args: Namespace, device: torch.device) -> int:
    """Evaluate a checkpoint, leave its scores beside it and print them."""
    path = Path(args.ckpt) if args.ckpt else run_dir_of(args) / BEST_FILE
    predictor = Predictor.from_checkpoint(path, device, args.precision, args.output_stride)
    score_checkpoint(predictor, Evaluation.of(args))
    return 0


def run(args: Namespace, device: torch.device, command: str) -> int:
    """Everything from the data to the last iteration, top to bottom."""
    outlive_output()
    folder = RunFolder(run_dir_of(args), args.tensorboard)
    folder.check(args.resume, args.overwrite)
    stored = read_json(folder.path / ARGS_FILE) if args.resume else {}
    if args.precision == "auto":  # what it came to is part of the run
        args.precision = stored.get("environment", {}).get("precision", "auto")
    args.precision = choose_precision(args.precision, device)
    set_seed(args.seed, args.deterministic)
    data = build_data(args, device)
    print_settings(args, data, device)
    model = build_network(args, data.train_set).to(device).to(memory_format=torch.channels_last)
    state = build_state(args, data.train_set, model)
    if args.resume:
        state.load(folder.last)
        print_main(f"resumed {folder.last} at iteration {state.cur_itrs}")
    if state.cur_itrs > args.total_itrs:
        raise UserError(f"--total_itrs {args.total_itrs}: {state.cur_itrs} are done: give more")
    if get_rank():  # from here on only dropout draws: differently in every process
        torch.manual_seed(derive_seed(args.seed, get_rank(), state.cur_itrs))

    with folder.held(args.resume, args.overwrite), StopSignals() as signals:
        folder.drop_log_after(state.evaluated_itrs)  # it will be logged again
        if is_main():
            settings = settings_of(args, data, device, command, stored)
            write_json(folder.path / ARGS_FILE, settings)
        train_and_keep(args, data, state, folder, signals)
    if signals.received is None and is_main():
        print(summarise(load_run(folder.path)))
    return signals.exit_status


def train_and_keep(
    args: Namespace, data: Data, state: TrainingState, folder: RunFolder, signals: StopSignals
) -> None:
    """Train; whatever ends it, keep what is done, and say how to go on."""
    names = ["--runs_dir", str(folder.path.parent), "--run_name", folder.path.name]
    go_on = f"go on with {shlex.join(['python', 'main.py', '--resume', *names])}"
    try:
        train(args, data, state, folder, signals)
    except Stopped:
        state.save(folder.last)
        print_main(f"stopped at iteration {state.cur_itrs}: {go_on}")
    except NonFiniteError as error:
        has_saved = folder.last.exists()
        kept = f"{folder.last} holds good weights" if has_saved else "nothing was saved yet"
        raise UserError(f"{error}; {kept}") from None
    except UserError as error:
        # It came between two iterations, unless it was a worker's end. Several processes could not
        # agree on anything any more.
        if state.cur_itrs and get_world_size() == 1 and not isinstance(error, WorkerError):
            state.save(folder.last)
        raise UserError(f"{error}; {go_on}" if folder.last.exists() else str(error)) from None


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
    is_gpu = device.type == "cuda"
    batches = iter(build_loader(data.train_set, planned, args.num_workers, is_gpu))
    began = time.perf_counter() - state.seconds
    saved = state.seconds if state.cur_itrs else -math.inf
    options = {"initial": state.cur_itrs, "bar_format": BAR, "disable": not is_main()}
    with progress(None, "train", args.total_itrs, **options) as bar:
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
            if signals.stop_together(state.cur_itrs, device):
                raise Stopped
            batch = next(batches)
            state.lrs = learning_rates(state.optimizer)
            loss = train_step(
                network, batch, criterion, state.optimizer, state.scaler, args.precision
            )
            state.scheduler.step()
            if state.average is not None:
                state.average.update()
            state.cur_itrs += 1
            state.losses.add(loss, state.cur_itrs, state.lrs, batch[2])
            folder.plot(state.cur_itrs, {"loss": state.losses.latest, "rate": state.lrs[-1]})
            bar.set_description_str(epoch_text(args, data, state), refresh=False)
            bar.set_postfix_str(losses_text(state), refresh=False)
            bar.update()


def validate(
    args: Namespace, data: Data, state: TrainingState, folder: RunFolder, signals: StopSignals
) -> None:
    """Score the model, keep it in `best.pth` if it is the best so far, and log the scores."""
    start = time.perf_counter()
    state.losses.check()
    state.check_weights()
    train_loss = state.losses.total / (state.cur_itrs - state.evaluated_itrs)
    sync_buffers(state.evaluated_model)
    predictor = Predictor(state.evaluated_model, args.precision, resize=args.resize)
    device = predictor.device
    should_stop = partial(signals.stop_together, device=device)
    scores = evaluate(predictor, data.val_set, data.val_loader, should_stop=should_stop).compute()
    class_iou = dict(zip(state.class_names, scores.pop("class_iou"), strict=True))
    if scores["miou"] > state.best_score or state.evaluated_itrs == 0:
        state.save_best(folder.best, scores["miou"])
    seconds = time.perf_counter() - start
    is_gpu = device.type == "cuda"
    record = {
        "iteration": state.cur_itrs,
        "epoch": round(state.cur_itrs / data.per_epoch, 2),
        "train_loss": train_loss,
        "lr": state.lrs[-1],
        "backbone_lr": state.lrs[0],
        **scores,
        "class_iou": class_iou,
        "seconds": state.seconds + seconds,
        "val_seconds": seconds,
        "max_memory_mb": torch.cuda.max_memory_allocated(device) / 1e6 if is_gpu else None,
    }
    folder.append_log(record)
    state.best_score = max(state.best_score, scores["miou"])
    state.evaluated_itrs, state.losses.total = state.cur_itrs, 0.0
    if is_main():
        say(
            f"{epoch_text(args, data, state)}, iteration {state.cur_itrs}: loss {train_loss:.4f}, "
            f"mIoU {100 * scores['miou']:.2f} (best {100 * state.best_score:.2f}), "
            f"pixel acc {100 * scores['pixel_acc']:.2f}, {record['seconds']:.0f} s"
        )


def epoch_text(args: Namespace, data: Data, state: TrainingState) -> str:
    """How far the training is."""
    done, total = (count / data.per_epoch for count in (state.cur_itrs, args.total_itrs))
    return f"epoch {done:.1f}/{round(total, 1):g}"


def losses_text(state: TrainingState) -> str:
    """What the bar shows beside the time: the newest loss, and the best score if there is one."""
    best = f", best {100 * state.best_score:.1f}" if state.evaluated_itrs else ""
    return f"loss {state.losses.latest:.3g}{best}"


def set_seed(seed: int, deterministic: bool) -> None:
    """Seed the weights and dropout; order and augmentation have seeds of their own."""
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


def build_data(args: Namespace, device: torch.device) -> Data:
    """The training set, augmented, and the evaluation's data."""
    crop_size = (args.crop_size[0], args.crop_size[-1])
    transform = train_transform(crop_size, args.resize, args.color_jitter)
    with main_first():  # what is downloaded or drawn comes once
        train_set = build_dataset(DataSource.of(args), args.image_set, transform, keep_doubles=True)
        crop = args.crop_size[0] if args.crop_val else None
        val_set, sizes = build_val_set(DataSource.of(args), args.val_image_set, crop)
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
        print_main(start_from(model, args.model, checkpoint, train_set.class_names))
    return model


def build_state(args: Namespace, train_set: SegmentationDataset, model: DeepLab) -> TrainingState:
    """The model and what changes it, before the first iteration."""
    optimizer = build_optimizer(
        model, args.lr, args.backbone_lr_factor, args.precision,
        momentum=args.momentum, weight_decay=args.weight_decay,
    )  # fmt: skip
    schedule = args.lr_policy, args.step_size, args.total_itrs, args.warmup_itrs
    for note in schedule_notes(*schedule):
        say_once(note)
    return TrainingState(
        model,
        optimizer,
        build_scheduler(optimizer, *schedule),
        build_scaler(args.precision, model.mean.device),
        WeightAverage(model, args.ema_decay) if args.ema_decay else None,
        LossMeter(train_set.ids),
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


def settings_of(
    args: Namespace, data: Data, device: torch.device, command: str, stored: dict[str, Any]
) -> dict[str, Any]:
    """What `args.json` holds: enough to run again, and what `auto` came to."""
    if stored.get("args", {}).get("total_itrs") == args.total_itrs:  # a resume that only goes on
        command = stored.get("command", command)
    elif "command" in stored:
        command = f"{stored['command']} && {command}"
    sets = {"train": data.train_set, "val": data.val_set}
    described = {name: {"images": len(s), "ids": s.ids_hash} for name, s in sets.items()}
    for name, before in stored.get("data", {}).items():
        if before != described[name]:
            print(
                f"note: the run began with other {name} images ({before['images']}, now "
                f"{described[name]['images']})"
            )
    before = stored.get("environment", {}).get("processes", get_world_size())
    if before != get_world_size():
        print(
            f"note: the run began with {before} processes, now {get_world_size()}: each iteration "
            "sees the same samples, but batch norm (on CPUs) and dropout differ"
        )
    return {
        "command": command,
        "args": settings_to_store(args),
        "class_names": data.train_set.class_names,
        "data": described,
        "environment": {
            **describe_environment(),
            "device": str(device),
            "precision": args.precision,
            "processes": get_world_size(),
        },
    }


def print_settings(args: Namespace, data: Data, device: torch.device) -> None:
    """Say what applies, defaults included."""
    train_set, val_set = data.train_set, data.val_set
    crop = args.crop_size[0] if args.crop_val else None
    print_main(
        f"{args.model}, output stride {args.output_stride}, backbone weights "
        f"{args.backbone_weights} (lr x{args.backbone_lr_factor:g}, BN momentum "
        f"{args.bn_momentum:g}), {describe_precision(args.precision, device)}\n"
        f"{args.dataset}: {len(train_set)} images of {args.image_set}, evaluated on "
        f"{len(val_set)} of {args.val_image_set} ({protocol(crop)}), {train_set.num_classes} "
        f"classes\n"
        f"{args.loss}, SGD lr {args.lr:g}, {args.lr_policy}, {args.total_itrs} iterations of "
        f"{args.batch_size} images, crop {args.crop_size}, resized by {args.resize:g}\n"
        f"results in {run_dir_of(args)}"
    )


if __name__ == "__main__":
    run_script(main)
