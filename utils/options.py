"""The flags of `main.py`, and what they imply for one another."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from datasets import DATA_FLAGS, add_data_args
from datasets.loader import default_num_workers
from network.modeling import MODELS
from utils.checkpoint import require_checkpoint
from utils.common.errors import UserError
from utils.common.files import read_json
from utils.common.flags import SEED, SHARE, SIDE, Parser, real, refuse, show, whole
from utils.common.progress import say_once
from utils.loss import LOSSES, build_criterion
from utils.optim import LR_POLICIES
from utils.precision import PRECISIONS
from utils.run_folder import ARGS_FILE

# What a data set changes in the recipe.
DATASET_DEFAULTS: dict[str, dict[str, Any]] = {
    "cityscapes": {"crop_size": [769], "lr_policy": "poly"},
    "shapes": {
        "model": "deeplabv3plus_mobilenet",  # minutes on a CPU
        "backbone_weights": "none",
        "crop_size": [64],  # more would be padded, which whole images are not: norms would be off
        "lr": 0.03,
        "lr_policy": "poly",
        "ema_decay": 0.99,  # evens out the norms' statistics, which jump from scratch
        "total_itrs": 1020,
        "val_interval": 4,
    },
}
# Without pretrained weights there is nothing to protect in the backbone.
FROM_SCRATCH_DEFAULTS = {"backbone_lr_factor": 1.0, "bn_momentum": 0.1}
# What `--recipe` changes; without pretrained weights the values above stay.
RECIPES: dict[str, dict[str, Any]] = {
    "course": {},
    "strong": {
        "lr_policy": "poly",
        "loss": "ce_lovasz",
        "lr": 0.05,
        "backbone_lr_factor": 0.5,
    },
}
FOCAL_GAMMA = 2.0

# Flags of one command, not of the run, and those of them that do not go together.
ONE_TIME = {"args", "resume", "overwrite", "test_only"}
EXCLUSIVE = {"resume": ("args", "overwrite", "test_only"), "test_only": ("overwrite",)}
OFF = (None, False, 0, "none", "off")  # stored values of flags that did nothing
# Settings that do not change what a run computes: where things are, and how fast they go.
IRRELEVANT_SETTINGS = {
    "data_root", "no_download", "voc_archive", "runs_dir", "run_name", "device", "num_workers",
    "val_batch_size", "save_interval", "compile", "tensorboard",
}  # fmt: skip
# What `--test_only` heeds; `--crop_size` as well with `--crop_val`. Training alone heeds the rest.
EVALUATION_SETTINGS = DATA_FLAGS | {
    "val_image_set", "crop_val", "output_stride", "ckpt", "run_name", "runs_dir",
    "val_batch_size", "num_workers", "device", "precision",
}  # fmt: skip


def build_parser(description: str) -> Parser:
    """All flags, in groups; choices come from the tables."""
    parser = Parser(description=description)
    add = add_data_args(parser).add_argument
    add("--image_set", default="train", help="split to train on")
    add("--val_image_set", default="val", help="split to evaluate on")
    add(
        "--crop_size",
        type=SIDE,
        nargs="+",
        default=[513],
        help="of training: side, or height width",
    )
    add("--crop_val", action="store_true", help="evaluate centre crops (the public ancestor's way)")
    add("--resize", type=real(0.01, 16), default=1.0, help="factor of all images, before all else")
    add("--color_jitter", type=SHARE, default=0.0, help="strength, from 0 to 1")
    _add_model_args(parser)
    _add_optimization_args(parser)
    _add_run_args(parser)
    return parser


def _add_model_args(parser: Parser) -> None:
    add = parser.add_argument_group("model").add_argument
    add("--model", choices=list(MODELS), default="deeplabv3plus_resnet50", help="architecture")
    text = "of the backbone (default: 16; with --test_only what the checkpoint says)"
    add("--output_stride", type=int, choices=[8, 16], help=text)
    add("--separable_conv", action="store_true", help="separable head convolutions")
    add("--backbone_weights", default="imagenet1k_v1", help="or imagenet1k_v2, none, a file")
    add("--bn_momentum", type=SHARE, default=0.01, help="of the backbone's BN")
    add("--aux_weight", type=real(), default=0.0, help="of an auxiliary head's loss; 0 for no head")
    add("--ckpt", help="start from these weights (with --test_only: evaluate them)")


def _add_optimization_args(parser: Parser) -> None:
    parser.needs |= {"focal_gamma": ("loss", "focal"), "step_size": ("lr_policy", "step")}
    add = parser.add_argument_group("optimization").add_argument
    add("--recipe", choices=list(RECIPES), default="course", help="set of defaults")
    add("--loss", choices=list(LOSSES), default="ce", help="training loss")
    text = f"focusing of the focal loss (default: {FOCAL_GAMMA:g})"
    add("--focal_gamma", type=real(0, 100), help=text)
    choices = ["none", "median_frequency"]
    add("--class_weights", choices=choices, default="none", help="for ce and focal")
    add("--lr", type=real(1e-12), default=0.01, help="learning rate of the head")
    add("--backbone_lr_factor", type=real(), default=0.1, help="backbone's rate / --lr")
    add("--momentum", type=real(0, 0.9999), default=0.9, help="of SGD")
    add("--weight_decay", type=real(), default=1e-4, help="of SGD")
    add("--lr_policy", choices=LR_POLICIES, default="step", help="schedule")
    add("--step_size", type=whole(1), default=1000, help="step: iterations per x0.1")
    add("--warmup_itrs", type=whole(), default=0, help="iterations of rising lr")
    add("--ema_decay", type=real(0, 0.99999), default=0.0, help="of averaged weights; 0: none")
    add("--total_itrs", type=whole(1), default=5000, help="iterations in all")
    # ASPP's pooling branch normalises one value per image.
    add("--batch_size", type=whole(2, 4096), default=8, help="images per iteration")


def _add_run_args(parser: Parser) -> None:
    group = parser.add_argument_group("run")
    add = group.add_argument
    add("--run_name", help="folder below --runs_dir (default: data_model_loss)")
    add("--runs_dir", default="runs", help="where runs are kept")
    add("--resume", action="store_true", help="go on with the run of this name")
    add("--overwrite", action="store_true", help="delete the run of this name first")
    add("--args", metavar="FILE", help="take all settings from a run's args.json")
    add("--test_only", action="store_true", help="evaluate, do not train")
    add("--val_interval", type=whole(1), default=1, help="epochs between evaluations")
    text = "iterations between saves of last.pth; 0: after evaluations, at most every few minutes"
    add("--save_interval", type=whole(), default=0, help=text)
    add_loader_flags(group)
    add_device_flags(group, "of the convolutions")
    add("--tensorboard", action="store_true", help="write losses, rates and scores for it as well")
    add("--compile", action="store_true", help="torch.compile: slow start; measure whether it pays")
    add("--seed", type=SEED, default=0, help="of weights, order and augmentation")
    add("--deterministic", action="store_true", help="slower, bit for bit on CUDA too")


def add_loader_flags(group: argparse._ArgumentGroup) -> None:
    """Add `--val_batch_size` and `--num_workers`; every script that scores a split has the same."""
    text = "images of one size at a time"
    group.add_argument("--val_batch_size", type=whole(1, 4096), default=8, help=text)
    default = default_num_workers()
    group.add_argument("--num_workers", type=whole(0, 64), default=default, help="loaders")


def add_device_flags(group: argparse._ArgumentGroup, precision_of: str) -> None:
    """Add `--device` and `--precision`; every script that runs a model has the same."""
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    text = f"{precision_of}; fp32 on CUDA is TF32 in convolutions"
    group.add_argument("--precision", choices=PRECISIONS, default="auto", help=text)


def parse_args(description: str, argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the flags of `main.py`, and merge them with what is stored and implied.

    Raises:
        UserError: flags that do not go together, or not with the run to resume or to evaluate.
    """
    parser = build_parser(description)
    defaults, given = parser.defaults(), parser.given(argv)
    for flag, others in EXCLUSIVE.items():
        if flag in given:
            refuse(others, given, f"does not go together with --{flag}: leave one of them out")
    stored = read_stored_args(parser, merge_settings(defaults, {}, given))
    args = merge_settings(defaults, stored, given)
    parser.check_needs(args, given)
    complete_args(args, given)
    if args.resume or args.test_only:
        check_unchanged(args, given, vars(merge_settings(defaults, stored, {})))
    return args


def merge_settings(
    defaults: Mapping[str, Any], stored: Mapping[str, Any], given: Mapping[str, Any]
) -> argparse.Namespace:
    """Defaults, the data set's, the recipe's, a stored run's, explicit flags: later ones win."""
    if "ckpt" in given:  # brings its own backbone
        stored = {**stored, "backbone_weights": "none"}
    if "recipe" in given and "resume" not in given:  # decides on all that any recipe decides on
        decided = {name for recipe in RECIPES.values() for name in recipe}
        stored = {name: value for name, value in stored.items() if name not in decided}
    explicit = {**stored, **given}
    chosen = {**defaults, **explicit}
    implied = DATASET_DEFAULTS.get(chosen["dataset"], {}) | RECIPES[chosen["recipe"]]
    settings = {**defaults, **implied, **explicit}
    if settings["backbone_weights"] == "none" and not settings["ckpt"]:
        settings |= FROM_SCRATCH_DEFAULTS | explicit
    return argparse.Namespace(**settings)


def settings_to_store(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that make a run what it is, for `args.json`."""
    return {key: value for key, value in vars(args).items() if key not in ONE_TIME}


def find_settings(args: argparse.Namespace) -> Path | None:
    """The `args.json` of `--args FILE`, of the run to go on with, or of the one to evaluate."""
    if args.args:
        return Path(args.args)
    if args.test_only and args.ckpt:
        path = Path(args.ckpt).parent / ARGS_FILE
        return path if path.exists() else None  # a checkpoint from elsewhere
    if not (args.resume or args.test_only):
        return None
    path = Path(args.runs_dir, args.run_name or default_run_name(args), ARGS_FILE)
    if not path.exists():
        flag = "--resume" if args.resume else "--test_only"
        raise UserError(f"{flag}: {path.parent} holds no run: see --run_name and --runs_dir")
    return path


def read_stored_args(parser: Parser, args: argparse.Namespace) -> dict[str, Any]:
    """The settings in the file that `find_settings` names; empty for a new run."""
    path = find_settings(args)
    if path is None:
        return {}
    settings = read_json(path).get("args")
    if not isinstance(settings, dict):
        raise UserError(f"{path}: holds no settings of a run")
    stored = parser.stored(settings, str(path))
    gone = sorted(settings.keys() - parser.defaults().keys())
    if left_out := [f"{name} {settings[name]}" for name in gone if settings[name] not in OFF]:
        say_once(f"{path}: left out, no flags any more: {', '.join(left_out)}")
    if args.test_only:
        stored.pop("ckpt", None)  # the run began with it, and its end is evaluated
    if not args.args:  # the folder may have been moved or renamed
        stored |= {"runs_dir": args.runs_dir, "run_name": args.run_name or path.parent.name}
    elif stored.get("run_name") == default_run_name(argparse.Namespace(**vars(args) | stored)):
        del stored["run_name"]  # follows from what may be changed now
    return stored


def check_unchanged(
    args: argparse.Namespace, given: Mapping[str, Any], kept: Mapping[str, Any]
) -> None:
    """Refuse what `--resume` would not go on with, and what `--test_only` has no use for."""
    if args.resume:
        # Steps do not depend on where the run ends, polynomial decay does.
        heeded = IRRELEVANT_SETTINGS | ({"total_itrs"} if args.lr_policy == "step" else set())
        reason = (
            "the run was started with {}: leave the flag out, or start a new run with --run_name"
        )
    else:
        heeded = EVALUATION_SETTINGS | ({"crop_size"} if args.crop_val else set())
        reason = "does nothing with --test_only: leave it out"
    for key, value in given.items():
        if key not in heeded | ONE_TIME and kept[key] != value:
            raise UserError(f"--{key} {show(value)}: {reason.format(show(kept[key]))}")


def complete_args(args: argparse.Namespace, given: Mapping[str, Any]) -> None:
    """Complete the settings, and refuse what cannot work before anything is built."""
    if len(args.crop_size) > 2 or (args.crop_val and len(set(args.crop_size)) > 1):
        raise UserError(
            f"--crop_size {show(args.crop_size)}: give the side, or (without --crop_val) height "
            "and width"
        )
    if args.loss != "focal":
        args.focal_gamma = None
    elif args.focal_gamma is None:
        args.focal_gamma = FOCAL_GAMMA
    # Refuses options that the loss has no use for before any data is read.
    weights = None if args.class_weights == "none" else torch.ones(1)
    build_criterion(args.loss, class_weights=weights, focal_gamma=args.focal_gamma)
    if args.ckpt and given.get("backbone_weights", "none") != "none" and not args.test_only:
        raise UserError(f"--backbone_weights: --ckpt {args.ckpt} brings its own: leave it out")
    if not args.resume:
        require_checkpoint(given.get("ckpt"))
    args.run_name = args.run_name or default_run_name(args)
    if args.output_stride is None and not args.test_only:
        args.output_stride = 16


def default_run_name(args: argparse.Namespace) -> str:
    """Data, model and loss: what is compared most often."""
    data = Path(args.data_root).resolve().name if args.dataset == "custom" else args.dataset
    return f"{data}_{args.model}_{args.loss}"
