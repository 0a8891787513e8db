"""Train a DeepLab, or evaluate one.

    python main.py --dataset shapes                                  # a first run, offline
    python main.py --model deeplabv3plus_resnet50 --loss focal       # the course's run on VOC 2012
    python main.py --recipe strong                                   # a better recipe
    python main.py --dataset custom --data_root DIR                  # a data set of your own
    python main.py --test_only --ckpt runs/NAME/best.pth             # scores alone

A run leaves args.json, log.jsonl, best.pth and last.pth in `runs/<run_name>/`.
"""

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from datasets import build_dataset
from datasets.base import IGNORE_INDEX, SegmentationDataset
from datasets.class_counts import balanced_weights, class_statistics
from datasets.loader import EvaluationData, build_train_loader, derive_seed
from datasets.transforms import train_transform
from network.modeling import build_model
from utils.checkpoint import load_checkpoint, start_from
from utils.common.errors import UserError, run_script
from utils.common.files import write_json
from utils.distributed import (
    end_distributed,
    get_rank,
    get_world_size,
    init_distributed,
    is_main,
    main_first,
    print_main,
    sync_buffers,
    wait_for_all,
    wrap_model,
)
from utils.engine import LossMeter, NonFiniteLossError, evaluate, train_one_epoch
from utils.loss import AuxiliaryLoss, build_criterion, class_weights
from utils.optim import build_average, build_optimizer, build_scheduler
from utils.options import parse_args, run_dir_of, settings_to_store
from utils.precision import choose_device, choose_precision
from utils.predictor import Predictor
from utils.run_folder import (
    ARGS_FILE,
    BEST_FILE,
    LAST_FILE,
    check_run_dir,
    clear_run_dir,
    describe_environment,
    read_log,
    write_log,
)
from utils.scores import build_val_data, protocol, score_checkpoint
from utils.signals import Stopped, StopSignals
from utils.training_state import AfterStep, TrainingState


def set_seed(seed: int, deterministic: bool) -> None:
    """Seed the weights and dropout; order and augmentation have seeds of their own."""
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


def build_train_set(args: argparse.Namespace) -> SegmentationDataset:
    """The training set, augmented."""
    crop_size = (args.crop_size[0], args.crop_size[-1])
    transform = train_transform(crop_size, args.resize, args.color_jitter)
    return build_dataset(args, args.image_set, transform)


def build_loss(args: argparse.Namespace, train_set: SegmentationDataset) -> nn.Module:
    """The training loss; class weights are counted in the training set."""
    weights = None
    if args.class_weights != "none":
        counts = class_statistics(train_set)
        weights = class_weights(
            args.class_weights, counts.pixel_counts, counts.image_counts, counts.image_pixels
        )
    criterion = build_criterion(args.loss, IGNORE_INDEX, weights, args.focal_gamma)
    return AuxiliaryLoss(criterion, args.aux_weight) if args.aux_weight else criterion


def test(args: argparse.Namespace, device: torch.device, precision: str) -> None:
    """Evaluate a checkpoint, leave its scores beside it and print them."""
    path = Path(args.ckpt) if args.ckpt else run_dir_of(args) / BEST_FILE
    predictor = Predictor.from_checkpoint(path, device, precision, args.output_stride)
    score_checkpoint(predictor, args, path.parent)


def validate(
    state: TrainingState,
    data: EvaluationData,
    run_dir: Path,
    precision: str,
    device: torch.device,
    signals: StopSignals,
) -> None:
    """Score the model, keep it in `best.pth` if it is the best so far, and log the scores."""
    start = time.perf_counter()
    sync_buffers(state.evaluated_model)
    predictor = Predictor(state.evaluated_model, precision, resize=state.args.resize)
    scores = evaluate(predictor, data, should_stop=signals.stop_alone).compute()
    class_iou = scores.pop("class_iou")
    record = {
        "iteration": state.cur_itrs,
        "epoch": state.epoch,
        "train_loss": state.losses.mean(),
        "lr": state.optimizer.param_groups[-1]["lr"],
        "backbone_lr": state.optimizer.param_groups[0]["lr"],
        **scores,
        "class_iou": dict(zip(data.dataset.class_names, class_iou, strict=True)),
        "seconds": state.seconds(),
        "val_seconds": time.perf_counter() - start,
        "max_memory_mb": max_memory_mb(device),
    }
    state.losses.reset()
    is_best = scores["miou"] > state.best_score or state.best_score == 0
    if is_best:
        state.best_score = scores["miou"]
        state.save(run_dir / BEST_FILE)
    if not is_main():
        return
    write_log(run_dir, [*read_log(run_dir), record])
    tqdm.write(
        f"iteration {state.cur_itrs}, epoch {state.epoch}: loss {record['train_loss']:.4f}, "
        f"mIoU {100 * scores['miou']:.2f}, pixel acc {100 * scores['pixel_acc']:.2f}, "
        f"{state.seconds():.0f} s{' (best so far)' if is_best else ''}"
    )


def max_memory_mb(device: torch.device) -> float | None:
    """Peak memory of the GPU so far, in MB; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else None


def train(
    state: TrainingState,
    criterion: nn.Module,
    train_loader: DataLoader,
    val_data: EvaluationData,
    run_dir: Path,
    precision: str,
    device: torch.device,
    signals: StopSignals,
) -> None:
    """Train to `--total_itrs`, evaluating every `--val_interval` epochs and at the end.

    Raises:
        Stopped: a signal came; the state is that after the last whole iteration.
    """
    args, sampler = state.args, train_loader.batch_sampler
    per_epoch = sampler.batches_per_epoch
    evaluated = {record["iteration"] for record in read_log(run_dir)}
    model = wrap_model(state.model, device)
    if args.compile:
        model = torch.compile(model)
    with progress_bar(args.total_itrs, state.cur_itrs) as bar:
        after_step = AfterStep(state, bar, run_dir / LAST_FILE, args.save_interval, signals)
        while True:
            at_end = state.cur_itrs >= args.total_itrs
            epoch, first = divmod(state.cur_itrs, per_epoch)
            is_due = state.cur_itrs > 0 and first == 0 and epoch % args.val_interval == 0
            if (is_due or at_end) and state.cur_itrs not in evaluated:
                validate(state, val_data, run_dir, precision, device, signals)
            if state.cur_itrs > 0:
                state.save(run_dir / LAST_FILE)
            if at_end:
                break
            sampler.set_range(epoch, first, first + args.total_itrs - state.cur_itrs)
            stopped = train_one_epoch(
                model, criterion, train_loader, state.optimizer, state.scheduler,
                state.scaler, precision, device, state.losses, after_step,
            )  # fmt: skip
            state.epoch = state.cur_itrs // per_epoch
            if stopped:
                raise Stopped


def progress_bar(total: int, initial: int) -> tqdm:
    """The bar over iterations; in a log file a line every half a minute is enough."""
    interval = 0.5 if sys.stderr.isatty() else 30
    return tqdm(
        desc="train", total=total, initial=initial, unit="it", mininterval=interval,
        disable=not is_main(),
    )  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Train as the flags say; returns the exit status."""
    args = parse_args(__doc__, argv)
    device = init_distributed(choose_device(args.device))
    try:
        status = run(args, device, choose_precision(args.precision, device))
        wait_for_all()
        return status
    finally:
        end_distributed()


def run(args: argparse.Namespace, device: torch.device, precision: str) -> int:
    """Everything from the data to the last iteration, top to bottom."""
    if args.test_only:
        test(args, device, precision)
        return 0
    run_dir = run_dir_of(args)
    if is_main():
        check_run_dir(run_dir, args.resume, args.overwrite)
    set_seed(args.seed, args.deterministic)

    with main_first():  # what is downloaded or drawn comes once
        train_set = build_train_set(args)
        val_data = build_val_data(args, pin_memory=device.type == "cuda")
    train_loader = build_train_loader(
        train_set,
        args.batch_size,
        args.seed,
        args.num_workers,
        pin_memory=device.type == "cuda",
        rank=get_rank(),
        world_size=get_world_size(),
        weights=balanced_weights(train_set) if args.balanced_sampling else None,
    )
    if args.cache == "ram":
        for dataset in (train_set, val_data.dataset):
            dataset.cache_in_ram()
    print_settings(args, train_set, val_data.dataset, device, precision)

    with main_first():
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
    model = model.to(device, memory_format=torch.channels_last)
    criterion = build_loss(args, train_set).to(device)
    optimizer = build_optimizer(
        model, args.lr, args.backbone_lr_factor, args.momentum, args.weight_decay
    )
    scheduler = build_scheduler(
        optimizer, args.lr_policy, args.step_size, args.total_itrs, args.warmup_itrs
    )
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    losses = LossMeter()
    average = build_average(model, args.ema_decay)
    state = TrainingState(
        model, average, optimizer, scheduler, scaler, losses, args, train_set.class_names
    )
    if get_rank():  # from here on only dropout draws: differently in every process
        torch.manual_seed(derive_seed(args.seed, get_rank()))
    with main_first():  # the others read the log when it is in order
        if is_main():  # not before: an earlier error must leave the old run as it is
            clear_run_dir(run_dir, args.resume)
        if args.resume:
            resume(state, run_dir)
        store_settings(args, train_set, run_dir, device, precision)

    with StopSignals() as signals, orderly_end(state, train_set, run_dir, device):
        train(
            state, criterion, train_loader, val_data, run_dir, precision, device, signals
        )  # fmt: skip
    if signals.received is None:
        print_main(f"best mIoU {100 * state.best_score:.2f} in {run_dir / BEST_FILE}")
    return signals.exit_status


@contextlib.contextmanager
def orderly_end(
    state: TrainingState, train_set: SegmentationDataset, run_dir: Path, device: torch.device
) -> Iterator[None]:
    """Whatever ends the training before its time, is said in one line; a signal saves first."""
    try:
        yield
    except Stopped:
        state.save(run_dir / LAST_FILE)
        command = f"python main.py --resume --runs_dir {run_dir.parent} --run_name {run_dir.name}"
        print_main(f"stopped at iteration {state.cur_itrs}: go on with {command}")
    except NonFiniteLossError as error:
        message = explain_non_finite(error, train_set.ids, run_dir / LAST_FILE)
        raise UserError(message) from None
    except (torch.OutOfMemoryError, MemoryError):
        raise UserError(
            f"{device} is out of memory: lower --batch_size, --crop_size or --val_batch_size, or "
            "use --precision bf16 or fp16"
        ) from None


def resume(state: TrainingState, run_dir: Path) -> None:
    """Go on from `last.pth`; what was logged after it will be logged again."""
    state.load(run_dir / LAST_FILE)
    if is_main():
        write_log(run_dir, [r for r in read_log(run_dir) if r["iteration"] <= state.cur_itrs])
    print_main(f"resumed {run_dir / LAST_FILE} at iteration {state.cur_itrs}")


def store_settings(
    args: argparse.Namespace,
    train_set: SegmentationDataset,
    run_dir: Path,
    device: torch.device,
    precision: str,
) -> None:
    """Write `args.json`: what is needed to run again, and what `auto` came to."""
    if not is_main():
        return
    settings = {
        "args": settings_to_store(args),
        "class_names": train_set.class_names,
        "environment": {
            **describe_environment(),
            "device": str(device),
            "precision": precision,
            "processes": get_world_size(),
        },
    }
    write_json(run_dir / ARGS_FILE, settings)


def print_settings(
    args: argparse.Namespace,
    train_set: SegmentationDataset,
    val_set: SegmentationDataset,
    device: torch.device,
    precision: str,
) -> None:
    """Say what applies, defaults included."""
    print_main(
        f"{args.model}, output stride {args.output_stride}, backbone weights "
        f"{args.backbone_weights} (lr x{args.backbone_lr_factor:g}, BN momentum "
        f"{args.bn_momentum:g}), {precision} on {device}\n"
        f"{args.dataset}: {len(train_set)} images of {args.image_set}, evaluated on "
        f"{len(val_set)} of {args.val_image_set} ({protocol(args)}), {train_set.num_classes} "
        f"classes\n"
        f"{args.loss}, SGD lr {args.lr:g}, {args.lr_policy}, {args.total_itrs} iterations of "
        f"{args.batch_size} images, crop {args.crop_size}, resized by {args.resize:g}\n"
        f"results in {run_dir_of(args)}"
    )


def explain_non_finite(error: NonFiniteLossError, ids: Sequence[str], kept: Path) -> str:
    """One line: when, with which learning rates and samples, and what is left."""
    samples = ", ".join(ids[index] for index in error.indices)
    lrs = ", ".join(f"{lr:g}" for lr in error.lrs)
    return (
        f"the loss is {error.value} at iteration {error.iteration} (learning rates {lrs}; samples "
        f"{samples}): lower --lr, or use --precision fp32; "
        + (f"{kept} holds the last good weights" if kept.exists() else "nothing was saved yet")
    )


if __name__ == "__main__":
    run_script(main)
