"""How fast an exported file is on the CPU, beside the project itself."""

from functools import partial

import torch

from utils.common.timing import Contender, measure, summarize
from utils.export.formats import Run
from utils.export.program import Program
from utils.predictor import Predictor

ROUNDS = 7


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
    contenders = [
        Contender("the file, fp32", lambda: partial(run, given)),
        Contender("Predictor, fp32", lambda: partial(predictor, image)),
        Contender("Predictor, bf16", lambda: partial(Predictor(predictor.model, "bf16"), image)),
        Contender("torch.compile, fp32", lambda: partial(torch.compile(program), given)),
    ]
    measure(contenders, ROUNDS, predictor.device)
    return {row["name"]: row["ms"] for row in summarize(contenders)}
