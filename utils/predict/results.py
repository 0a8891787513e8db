"""What predictions leave: masks, overlays, confidences, and the share of each class."""

import csv
import io
import sys
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from datasets.image_files import save_png
from utils.common.errors import UserError
from utils.common.files import write_text
from utils.precision import is_out_of_memory
from utils.predict.overlay import draw_overlay, palette_image
from utils.predict.photos import AHEAD, THREADS, output_files
from utils.predictor import Predictor


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
        self._pool = ThreadPoolExecutor(THREADS)
        self._savings: deque[tuple[str, Future]] = deque()

    def add(
        self,
        name: str,
        mask: Path,
        classes: np.ndarray,
        image: torch.Tensor | None = None,
        confidence: np.ndarray | None = None,
    ) -> None:
        """Begin to save what is known of an image, as soon as few others wait.

        Args:
            name: in predictions.csv.
            mask: the file of the classes; others lie beside it.
            classes: uint8 (H, W).
            image: uint8 (3, H, W), if there shall be an overlay.
            confidence: uint8 (H, W), if it shall be saved.
        """
        if len(self._savings) > AHEAD:
            self._finish_oldest()
        saving = self._pool.submit(self._save, mask, classes, image, confidence)
        self._savings.append((name, saving))

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
        while self._savings:
            self._finish_oldest()
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

    def _finish_oldest(self) -> None:
        name, saving = self._savings.popleft()
        try:
            self.shares[name] = saving.result()
        except Exception as error:
            self.fail(name, error)

    def _save(
        self,
        mask: Path,
        classes: np.ndarray,
        image: torch.Tensor | None,
        confidence: np.ndarray | None,
    ) -> list[float]:
        """Write the files of an image; returns the share of each class."""
        _, overlay, softmax = (mask.with_name(file) for file in output_files(mask.stem))
        coloured = palette_image(classes, self.palette)
        save_png(mask, coloured)
        if image is not None:
            save_png(overlay, draw_overlay(image, classes, self.class_names, self.palette))
        if confidence is not None:
            save_png(softmax, Image.fromarray(confidence))
        counts = coloured.histogram()[: len(self.class_names)]
        return [count / classes.size for count in counts]
