"""What the flags of all scripts share: numbers with bounds, faults in one line, nothing ignored."""

import argparse
import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from utils.common.errors import UserError

MANY = 10**9  # above what anybody needs, and below what takes a machine down


@dataclasses.dataclass(frozen=True)
class Number:
    """The `type=` of a flag: numbers from `least` to `most`."""

    kind: type[int] | type[float]
    least: float
    most: float

    def __call__(self, word: str) -> float:
        """The number that a word is; argparse turns the error into its own."""
        try:
            value = self.kind(word)
        except ValueError:
            value = math.nan
        if not self.least <= value <= self.most:
            kind = "a whole number" if self.kind is int else "a number"
            bounds = f"from {self.least:g} to {self.most:g}"
            raise argparse.ArgumentTypeError(f"must be {kind} {bounds}, not {word}")
        return value


def whole(least: int = 0, most: int = MANY) -> Number:
    """The `type=` of a flag that takes whole numbers."""
    return Number(int, least, most)


def real(least: float = 0, most: float = 1e30) -> Number:
    """The `type=` of a flag that takes finite numbers."""
    return Number(float, least, most)


SHARE, SIDE, SEED = real(0, 1), whole(1, 4096), whole(0, 2**63 - 1)


def _text(word: str) -> str:
    if not word:
        raise argparse.ArgumentTypeError("is empty: give a value, or leave it out")
    return word


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults where there are any, and leaves the description as it is."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        has_default = action.default not in (None, [])
        return super()._get_help_string(action) if has_default else action.help


class Parser(argparse.ArgumentParser):
    """A command line whose faults are a `UserError`, and which knows what it was given.

    Attributes:
        needs: flags that do nothing unless another one has a value, as {flag: (other, value)}.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"formatter_class": HelpFormatter, **kwargs})
        self.register("type", None, _text)
        self.needs: dict[str, tuple[str, str]] = {}

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        raise UserError(message.removeprefix("argument "))

    def defaults(self) -> dict[str, Any]:
        """The defaults of all flags, by name."""
        return {action.dest: action.default for action in self._actions if action.dest != "help"}

    def given(self, argv: list[str] | None = None) -> dict[str, Any]:
        """What a command line says, by name, without defaults.

        Raises:
            UserError: it names no flag of this script, or a value that the flag cannot have.
        """
        # argparse leaves alone what is there already: without defaults, None is what is not given.
        blank = argparse.Namespace(**dict.fromkeys(self.defaults()))
        values = vars(self.parse_intermixed_args(argv, blank))
        return {name: value for name, value in values.items() if value not in (None, [])}

    def stored(self, settings: Mapping[str, Any], source: str) -> dict[str, Any]:
        """Settings from a file, checked as if a command line gave them.

        Names that are no flags are left out, and so is None. `source` begins the message.

        Raises:
            UserError: a value that its flag cannot have.
        """
        words: list[str] = []
        for name, value in settings.items():
            if name not in self.defaults() or value is None or value is False:
                continue
            if isinstance(value, list):
                words += [f"--{name}", *map(str, value)]
            else:
                words.append(f"--{name}" if value is True else f"--{name}={value}")
        try:
            return self.given(words)
        except UserError as error:
            raise UserError(f"{source}: {error}") from None

    def check_needs(self, args: argparse.Namespace, given: Mapping[str, Any]) -> None:
        """Refuse flags that do nothing because of another flag's value, as `needs` says."""
        for flag, (other, value) in self.needs.items():
            if getattr(args, other, value) != value:
                refuse({flag}, given, f"does nothing without --{other} {value}: leave it out")


def refuse(flags: Collection[str], given: Mapping[str, Any], reason: str) -> None:
    """Raise a `UserError` with the reason if one of these flags was given: none is ignored."""
    if useless := sorted(given.keys() & set(flags)):
        raise UserError(f"--{useless[0]}: {reason}")


def show(value: object) -> str:
    """A value as a command line has it."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
