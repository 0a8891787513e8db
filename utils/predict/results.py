"""What predictions leave: masks, overlays, confidences, and the share of each class."""

import csv
import io
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Semaphore
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from datasets.image_files import save_png
from utils.common.errors import UserError
from utils.common.files import write_text
from utils.common.threads import THREADS
from utils.precision import is_out_of_memory
from utils.predict.overlay import draw_overlay, save_pred
from utils.predict.photos import output_files
from utils.predictor import Predictor


class Result(NamedTuple):
    """What is saved of an image."""

    name: str  # in predictions.csv
    mask: Path  # the file of the classes; others lie beside it
    classes: np.ndarray  # uint8 (H, W)
    image: torch.Tensor | None = None  # uint8 (3, H, W), if there shall be an overlay
    confidence: np.ndarray | None = None  # uint8 (H, W)


class Results:
    """The results of some images, written in threads beside the model.

    Attributes:
        shares: of the C classes in each image that was saved, by the image's name.
        failures: a line for each image that could not be done.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.class_names, self.palette = predictor.class_names, predictor.palette
        self.shares: dict[str, list[float]] = {}
        self.failures: list[str] = []
        self._pool, self._free = ThreadPoolExecutor(THREADS), Semaphore(2 * THREADS)
        self._savings: list[Future] = []

    def add(self, result: Result) -> None:
        """Begin to save a result, as soon as few others wait."""
        self._free.acquire()
        self._savings.append(self._pool.submit(self._save, result))

    def fail(self, name: str, error: Exception) -> None:
        """Note why an image failed, in one line; a fault of the program is raised again."""
        if is_out_of_memory(error):
            torch.cuda.empty_cache()
            error = UserError(f"{name}: out of memory: give a smaller --window")
        if not isinstance(error, UserError | OSError):
            raise error
        text = str(error)
        self.failures.append(text if text.startswith(name) else f"{name}: {text}")

    def end(self, folder: Path) -> int:
        """Wait for the rest, write `predictions.csv` and say what failed; gives the exit status."""
        for saving in self._savings:
            saving.result()
        self._pool.shutdown()
        if self.shares:
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(["image", *self.class_names])
            for name, shares in sorted(self.shares.items()):
                writer.writerow([name, *(f"{share:.6f}" for share in shares)])
            write_text(folder / "predictions.csv", text.getvalue())
        for failure in sorted(self.failures):
            print(f"failed: {failure}", file=sys.stderr)
        return 1 if self.failures else 0

    def _save(self, result: Result) -> None:
        name, mask, classes, image, confidence = result
        _, overlay, softmax = (mask.with_name(file) for file in output_files(mask.stem))
        try:
            save_pred(mask, classes, self.palette)
            if image is not None:
                save_png(overlay, draw_overlay(image, classes, self.class_names, self.palette))
            if confidence is not None:
                save_png(softmax, Image.fromarray(confidence))
            counts = Image.fromarray(classes).histogram()  # without a copy
            self.shares[name] = [n / classes.size for n in counts[: len(self.class_names)]]
        except Exception as error:
            self.fail(name, error)
        finally:
            self._free.release()
