"""What the flags of all scripts share: their ranges, one parse, and one merge."""

import argparse
import math
from collections.abc import Mapping, Set
from typing import Any, NamedTuple

from utils.common.errors import UserError


class Range(NamedTuple):
    """An interval; `ends` are those of mathematics: a round one leaves the bound itself out."""

    least: float
    most: float
    ends: str = "[]"

    def fault(self, value: float) -> str | None:
        """What a value would have to be; None if it lies in the interval."""
        if value != value:
            return "not a number"
        if value < self.least or (value == self.least and self.ends[0] == "("):
            return f"{'above' if self.ends[0] == '(' else 'at least'} {self.least}"
        if value > self.most or (value == self.most and self.ends[1] == ")"):
            return f"{'below' if self.ends[1] == ')' else 'at most'} {self.most}"
        return None


MANY = 10**9
SEED, SHARE, SIDE = Range(0, 2**63 - 1), Range(0, 1), Range(1, 4096)
COUNT, COUNT_OR_NONE, AMOUNT = Range(1, MANY), Range(0, MANY), Range(0, math.inf, "[)")
# Every number that a flag of any script takes. Upper bounds are above what anybody needs, and
# below what takes a machine down.
RANGES = {
    # data
    "crop_size": SIDE, "resize": Range(0, 16, "(]"), "color_jitter": SHARE,
    "val_fraction": Range(0, 1, "()"), "split_seed": SEED,
    # model and optimization
    "bn_momentum": SHARE, "aux_weight": AMOUNT, "focal_gamma": Range(0, 100),
    "lr": Range(0, math.inf, "()"), "backbone_lr_factor": AMOUNT, "momentum": Range(0, 1, "[)"),
    "weight_decay": AMOUNT, "step_size": COUNT, "warmup_itrs": COUNT_OR_NONE,
    "ema_decay": Range(0, 1, "[)"), "total_itrs": COUNT,
    "batch_size": Range(2, 4096),  # ASPP's pooling branch normalises one value per image
    # run
    "val_interval": COUNT, "val_batch_size": Range(1, 4096), "save_interval": COUNT_OR_NONE,
    "num_workers": Range(0, 64), "seed": SEED,
    # predict.py
    "scales": Range(0, 16, "(]"), "window": Range(32, 2**16), "overlap": Range(0, 2**16),
    "max_pixels": Range(1, 10**12),
    # visualize.py and sam_infer.py
    "dpi": Range(1, 1200), "limit": COUNT_OR_NONE,
    "points_per_side": Range(1, 256), "points_per_batch": Range(1, 4096),
    "pred_iou_thresh": SHARE, "stability_score_thresh": SHARE,
    "min_mask_region_area": COUNT_OR_NONE,
    # utils.benchmark and utils.export
    "repeats": Range(1, 10**4), "time": SIDE,
}  # fmt: skip
# What names a data set (`datasets.add_data_args`).
DATA_FLAGS = {
    "dataset", "data_root", "no_download", "voc_archive", "val_fraction", "split_seed",
}  # fmt: skip
# Flags that do nothing unless another one has this value.
NEEDS = {
    "no_download": ("dataset", "voc"),
    "voc_archive": ("dataset", "voc"),
    "val_fraction": ("dataset", "custom"),
    "split_seed": ("dataset", "custom"),
    "focal_gamma": ("loss", "focal"),
    "step_size": ("lr_policy", "step"),
    "points_per_side": ("prompts", "grid"),
}
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults where there are any, and leaves the description as it is."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        has_default = action.default not in (None, [])
        return super()._get_help_string(action) if has_default else action.help


def parse(
    parser: argparse.ArgumentParser, argv: list[str] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parse a command line, once.

    Returns:
        The defaults of all flags, and the values that the command line gives, by name.

    Raises:
        UserError: a value is out of range.
    """
    defaults = {action.dest: action.default for action in parser._actions if action.dest != "help"}
    # argparse leaves alone what is there already: without defaults, None is what was not given.
    blank = argparse.Namespace(**dict.fromkeys(defaults))
    words = vars(parser.parse_intermixed_args(argv, blank))
    given = {name: value for name, value in words.items() if value is not None}
    check_values(parser, given)
    return defaults, given


def merge(*layers: Mapping[str, Any]) -> argparse.Namespace:
    """One layer of settings over the other: the last one that has a setting decides."""
    return argparse.Namespace(**{name: layer[name] for layer in layers for name in layer})


def check_values(
    parser: argparse.ArgumentParser, values: Mapping[str, Any], source: str = ""
) -> None:
    """Refuse values that a flag cannot have; values from a file need not be of its type either.

    Names that are no flags are passed over. `source` begins the message, such as the name of the
    file that the values are from.

    Raises:
        UserError: the first such value.
    """
    for action in parser._actions:
        value = values.get(action.dest)
        if action.dest in values and (fault := _fault(action, value)):
            flag = (action.option_strings or [action.dest])[-1]
            raise UserError(f"{source}{flag} {show(value) or repr(value)}: {fault}")


def _fault(action: argparse.Action, value: Any) -> str | None:
    """What is wrong with a value; None if the flag can have it."""
    if action.nargs in ("+", "*"):
        if not isinstance(value, list) or (action.nargs == "+" and not value):
            return "must be a list of values"
        return next(filter(None, (_item_fault(action, item) for item in value)), None)
    return _item_fault(action, value)


def _item_fault(action: argparse.Action, value: Any) -> str | None:
    kind: Any = bool if action.nargs == 0 else action.type or str
    fits = isinstance(value, int | float if kind is float else kind)
    if not fits or isinstance(value, bool) != (kind is bool):
        return f"must be {_KINDS[kind]}"
    if value == "":
        return "is empty: give a value, or leave it out"
    if action.choices and value not in action.choices:
        return f"choose from {', '.join(map(str, action.choices))}"
    return RANGES[action.dest].fault(value) if kind in (int, float) and not action.choices else None


def check_needs(args: argparse.Namespace, given: Mapping[str, Any]) -> None:
    """Refuse flags that do nothing because of another flag's value, as `NEEDS` says."""
    for flag, (other, value) in NEEDS.items():
        if getattr(args, other, value) != value:
            refuse({flag}, given, f"does nothing without --{other} {value}: leave it out")


def refuse(flags: Set[str], given: Mapping[str, Any], reason: str) -> None:
    """Raise a `UserError` with the reason if one of these flags was given: none is ignored."""
    if useless := sorted(flags & given.keys()):
        raise UserError(f"--{useless[0]}: {reason}")


def show(value: object) -> str:
    """A value as a command line has it."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
