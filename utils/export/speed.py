"""How fast an exported file is on the CPU, beside the project itself."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch

from utils.export.formats import Run
from utils.export.program import Program
from utils.predictor import Predictor

WARM_UP, ROUNDS = 2, 7


def time_in_turns(ways: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Milliseconds of a call of each: the median of rounds in which all take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(WARM_UP + ROUNDS):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(values[WARM_UP:]) for name, values in seconds.items()}


@torch.inference_mode()
def compare_speed(run: Run, program: Program, predictor: Predictor, side: int) -> dict[str, float]:
    """Milliseconds for one square image, by who computes: the file, and the project in three ways.

    Args:
        run: the file: image to result.
        program: what was written.
        predictor: fp32, without `--resize`.
        side: of the image, in pixels.
    """
    image = torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8)
    given = predictor.model.normalize(image) if program.float_input else image
    bf16 = Predictor.from_checkpoint(predictor.checkpoint, "cpu", "bf16", predictor.output_stride)
    bf16.resize = 1.0
    compiled = torch.compile(program)
    return time_in_turns(
        {
            "the file, fp32": lambda: run(given),
            "Predictor, fp32": lambda: predictor(image),
            "Predictor, bf16": lambda: bf16(image),
            "torch.compile, fp32": lambda: compiled(given),
        }
    )
