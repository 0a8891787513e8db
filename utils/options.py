"""The flags of `main.py`, and what they imply for one another."""

import argparse
import math
from pathlib import Path
from typing import Any

import torch

from datasets import add_data_args
from datasets.loader import default_num_workers
from network.modeling import MODELS
from utils.common.errors import UserError
from utils.common.files import read_json
from utils.loss import CLASS_WEIGHTS, LOSSES, build_criterion
from utils.optim import LR_POLICIES
from utils.precision import PRECISIONS
from utils.run_folder import ARGS_FILE

# What a data set changes in the recipe; explicit flags win.
DATASET_DEFAULTS: dict[str, dict[str, Any]] = {
    "shapes": {
        "backbone_weights": "none",
        "crop_size": [96],
        "lr": 0.03,
        "lr_policy": "poly",
        "total_itrs": 500,
        "val_interval": 2,
    },
}
# What `--recipe` changes, after the data set; explicit flags win.
RECIPES: dict[str, dict[str, Any]] = {
    "course": {},
    "strong": {"lr_policy": "poly", "loss": "ce_lovasz"},
}
# Without pretrained weights there is nothing to protect in the backbone; explicit flags win.
FROM_SCRATCH_DEFAULTS: dict[str, dict[str, Any]] = {
    "course": {"backbone_lr_factor": 1.0, "bn_momentum": 0.1},
    "strong": {"backbone_lr_factor": 1.0, "bn_momentum": 0.1, "lr": 0.05},
}

# Flags of one command, not of the run.
ONE_TIME = {"args", "resume", "overwrite", "test_only"}
# What a resumed run may change: where things are and how fast they go, not what is computed.
IRRELEVANT_SETTINGS = {
    "data_root", "no_download", "voc_archive", "ckpt", "runs_dir", "run_name", "device",
    "num_workers", "val_batch_size", "save_interval", "cache",
    "compile",
}  # fmt: skip


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults where there are any, and leaves the description as it is."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def build_parser(description: str) -> argparse.ArgumentParser:
    """All flags, in groups; choices come from the tables."""
    parser = argparse.ArgumentParser(description=description, formatter_class=HelpFormatter)
    data = add_data_args(parser)
    data.add_argument("--image_set", default="train", help="split to train on")
    data.add_argument("--val_image_set", default="val", help="split to evaluate on")
    data.add_argument(
        "--crop_size",
        type=int,
        nargs="+",
        default=[513],
        help="training crop: side, or height width",
    )
    data.add_argument(
        "--crop_val", action="store_true", help="evaluate centre crops (the public ancestor's way)"
    )
    data.add_argument(
        "--resize", type=float, default=1.0, help="factor that images are resized by at first"
    )
    data.add_argument("--color_jitter", type=float, default=0.0, help="strength, from 0 to 1")
    data.add_argument(
        "--balanced_sampling", action="store_true", help="show images with rare classes more often"
    )
    data.add_argument(
        "--cache", choices=["none", "ram"], default="none", help="keep decoded images in memory"
    )

    model = parser.add_argument_group("model")
    model.add_argument(
        "--model", choices=list(MODELS), default="deeplabv3plus_resnet50", help="architecture"
    )
    model.add_argument(
        "--output_stride",
        type=int,
        choices=[8, 16],
        help="of the backbone (default: 16; with --test_only what the checkpoint says)",
    )
    model.add_argument("--separable_conv", action="store_true", help="separable head convolutions")
    model.add_argument(
        "--backbone_weights",
        default="imagenet1k_v1",
        help="imagenet1k_v1, imagenet1k_v2, none, or a file with torchvision's weights",
    )
    model.add_argument("--bn_momentum", type=float, default=0.01, help="of the backbone's BN")
    model.add_argument(
        "--aux_weight", type=float, default=0.0, help="of an auxiliary head's loss; 0 for no head"
    )
    model.add_argument("--ckpt", help="start from these weights (with --test_only: evaluate them)")

    optim = parser.add_argument_group("optimization")
    optim.add_argument("--recipe", choices=list(RECIPES), default="course", help="set of defaults")
    optim.add_argument("--loss", choices=list(LOSSES), default="ce", help="training loss")
    optim.add_argument("--focal_gamma", type=float, help="focusing of the focal loss (default: 2)")
    optim.add_argument(
        "--class_weights", choices=list(CLASS_WEIGHTS), default="none", help="for ce and focal"
    )
    optim.add_argument("--lr", type=float, default=0.01, help="learning rate of the head")
    optim.add_argument(
        "--backbone_lr_factor", type=float, default=0.1, help="backbone's learning rate / --lr"
    )
    optim.add_argument("--momentum", type=float, default=0.9, help="of SGD")
    optim.add_argument("--weight_decay", type=float, default=1e-4, help="of SGD")
    optim.add_argument("--lr_policy", choices=LR_POLICIES, default="step", help="schedule")
    optim.add_argument("--step_size", type=int, default=1000, help="step: iterations per x0.1")
    optim.add_argument("--warmup_itrs", type=int, default=0, help="iterations of rising lr")
    optim.add_argument(
        "--ema_decay", type=float, default=0.0, help="evaluate an average of the weights; 0: do not"
    )
    optim.add_argument("--total_itrs", type=int, default=5000, help="iterations in all")
    optim.add_argument("--batch_size", type=int, default=8, help="images per iteration")

    run = parser.add_argument_group("run")
    run.add_argument("--run_name", help="folder below --runs_dir (default: data_model_loss)")
    run.add_argument("--runs_dir", default="runs", help="where runs are kept")
    run.add_argument("--resume", action="store_true", help="go on with the run of this name")
    run.add_argument("--overwrite", action="store_true", help="delete the run of this name first")
    run.add_argument("--args", metavar="FILE", help="take all settings from a run's args.json")
    run.add_argument("--test_only", action="store_true", help="evaluate, do not train")
    run.add_argument("--val_interval", type=int, default=1, help="epochs between evaluations")
    run.add_argument("--val_batch_size", type=int, default=8, help="images of one size at a time")
    run.add_argument("--save_interval", type=int, default=0, help="iterations between saves")
    run.add_argument("--num_workers", type=int, default=default_num_workers(), help="loaders")
    run.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    run.add_argument("--precision", choices=PRECISIONS, default="auto", help="of the convolutions")
    run.add_argument("--compile", action="store_true", help="torch.compile: slow start, then fast")
    run.add_argument("--seed", type=int, default=0, help="of weights, order and augmentation")
    run.add_argument("--deterministic", action="store_true", help="slower, bit for bit on CUDA too")
    return parser


def parse_args(description: str, argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the flags of `main.py`.

    What some flags imply for others becomes a default, and the command line is parsed once more:
    so explicit flags always win.

    Raises:
        UserError: flags that do not go together, or not with the run to resume.
    """
    parser = build_parser(description)
    args = parser.parse_args(argv)
    stored = read_stored_args(args)
    parser.set_defaults(**DATASET_DEFAULTS.get(args.dataset, {}))
    parser.set_defaults(**RECIPES[args.recipe])
    if args.ckpt:
        parser.set_defaults(backbone_weights="none")
    elif parser.parse_args(argv).backbone_weights == "none":
        parser.set_defaults(**FROM_SCRATCH_DEFAULTS[args.recipe])
    parser.set_defaults(**stored)
    args = parser.parse_args(argv)
    check_args(args)
    if args.resume:
        check_resume(args, stored)
    return args


def settings_to_store(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that make a run what it is, for `args.json`."""
    return {key: value for key, value in vars(args).items() if key not in ONE_TIME}


def read_stored_args(args: argparse.Namespace) -> dict[str, Any]:
    """The settings of `--args FILE`, or of the run to go on with, or of the one to evaluate."""
    if args.args:
        path = Path(args.args)
    elif args.resume:
        path = run_dir_of(args) / ARGS_FILE
        if not path.exists():
            raise UserError(f"--resume: {path.parent} holds no run: see --run_name and --runs_dir")
    elif args.test_only:
        path = (Path(args.ckpt).parent if args.ckpt else run_dir_of(args)) / ARGS_FILE
        if not path.exists():  # a checkpoint from elsewhere
            return {}
    else:
        return {}
    stored = read_json(path).get("args")
    if not isinstance(stored, dict):
        raise UserError(f"{path}: holds no settings of a run")
    return {key: value for key, value in stored.items() if key in settings_to_store(args)}


def check_resume(args: argparse.Namespace, stored: dict[str, Any]) -> None:
    """A resumed run computes what it would have: refuse flags that would change that."""
    # Steps do not depend on where the run ends, polynomial decay does.
    free = IRRELEVANT_SETTINGS | ({"total_itrs"} if args.lr_policy == "step" else set())
    for key, value in settings_to_store(args).items():
        if key not in free and key in stored and stored[key] != value:
            raise UserError(
                f"--{key} {value}: the run was started with {stored[key]}: leave the flag out, or "
                "start a new run with --run_name"
            )


def check_args(args: argparse.Namespace) -> None:
    """Complete the settings, and refuse what cannot work before anything is built."""
    if len(args.crop_size) not in (1, 2) or min(args.crop_size) < 1:
        raise UserError(f"--crop_size {args.crop_size}: give the side, or height and width")
    if args.crop_val and len(set(args.crop_size)) > 1:
        raise UserError("--crop_val: needs a square --crop_size")
    check_numbers(args)
    # Refuses options that the loss has no use for before any data is read.
    weights = None if args.class_weights == "none" else torch.ones(1)
    build_criterion(args.loss, class_weights=weights, focal_gamma=args.focal_gamma)
    if args.test_only and args.resume:
        raise UserError("--test_only: evaluates and does not resume: leave --resume out")
    if args.ckpt and args.backbone_weights != "none" and not args.test_only:
        raise UserError("--ckpt: brings its own backbone: leave --backbone_weights out")
    args.run_name = args.run_name or default_run_name(args)
    if args.output_stride is None and not args.test_only:
        args.output_stride = 16


def check_numbers(args: argparse.Namespace) -> None:
    """Refuse numbers that are out of range."""
    for flag in ("total_itrs", "step_size", "val_interval", "val_batch_size"):
        if getattr(args, flag) < 1:
            raise UserError(f"--{flag} {getattr(args, flag)}: at least 1")
    for flag in ("warmup_itrs", "aux_weight"):
        if not 0 <= getattr(args, flag) < math.inf:
            raise UserError(f"--{flag} {getattr(args, flag)}: at least 0")
    if not 0 < args.resize < math.inf:
        raise UserError(f"--resize {args.resize}: a factor above 0, such as 0.5")
    if not 0 <= args.color_jitter <= 1:
        raise UserError(f"--color_jitter {args.color_jitter}: from 0 to 1")
    if not 0 <= args.ema_decay < 1:
        raise UserError(f"--ema_decay {args.ema_decay}: from 0 to below 1, such as 0.99")


def default_run_name(args: argparse.Namespace) -> str:
    """Data, model and loss: what is compared most often."""
    data = Path(args.data_root).resolve().name if args.dataset == "custom" else args.dataset
    return f"{data}_{args.model}_{args.loss}"


def run_dir_of(args: argparse.Namespace) -> Path:
    """The folder of this run."""
    return Path(args.runs_dir) / (args.run_name or default_run_name(args))
