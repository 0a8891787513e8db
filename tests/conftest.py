"""Small data sets in VOC's layout, and a way to run a script as a user does."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.voc import PALETTE
from utils.common.errors import run_script

ROOT = Path(__file__).parents[1]

# What a shell starts with & ignores Ctrl-C, and what nohup starts a hang-up: so would the scripts
# that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def save_mask(path: Path, indices: np.ndarray) -> None:
    """Write a palette PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = Image.fromarray(indices.astype(np.uint8))
    mask.putpalette(PALETTE.flatten().tolist())
    mask.save(path)


def save_sample(folder: Path, name: str, size: tuple[int, int], num_classes: int) -> None:
    """Write one image and its mask: a square of class 1 + (hash of the name) on background."""
    rng = np.random.default_rng(list(name.encode()))
    height, width = size
    indices = np.zeros(size, np.uint8)
    value = int(rng.integers(1, num_classes))
    indices[height // 4 : height * 3 // 4, width // 4 : width * 3 // 4] = 255
    indices[height // 4 + 2 : height * 3 // 4 - 2, width // 4 + 2 : width * 3 // 4 - 2] = value
    image = PALETTE[indices] // 2 + rng.integers(0, 64, (*size, 3), dtype=np.uint8)
    (folder / "JPEGImages").mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(folder / "JPEGImages" / f"{name}.jpg", quality=95)
    save_mask(folder / "SegmentationClass" / f"{name}.png", indices)


def write_list(folder: Path, image_set: str, ids: Sequence[str]) -> None:
    """Write `ImageSets/Segmentation/<image_set>.txt`."""
    path = folder / "ImageSets" / "Segmentation" / f"{image_set}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in ids))


def make_voc(root: Path, num_train: int = 6, num_val: int = 5, num_classes: int = 21) -> Path:
    """A VOC 2012 of a few small images of several sizes; returns the folder VOC2012."""
    folder = root / "VOCdevkit" / "VOC2012"
    sizes = [(48, 64), (64, 48), (48, 64), (50, 50)]
    names = {
        "train": [f"2007_{number:06d}" for number in range(num_train)],
        "val": [f"2008_{number:06d}" for number in range(num_val)],
    }
    for image_set, ids in names.items():
        for number, name in enumerate(ids):
            save_sample(folder, name, sizes[number % len(sizes)], num_classes)
        write_list(folder, image_set, ids)
    write_list(folder, "trainval", names["train"] + names["val"])
    return folder


@contextlib.contextmanager
def as_process(rank: int, world_size: int) -> Iterator[None]:
    """What loads data takes this process for one of several."""
    with (
        patch("datasets.loader.get_rank", lambda: rank),
        patch("datasets.loader.get_world_size", lambda: world_size),
    ):
        yield


def run_python(
    code: str, *argv: object, cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, argv)],
        cwd=cwd, capture_output=True, text=True, timeout=600, env={**os.environ, **environment},
    )  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `--data_root` with a small VOC 2012 that the tests of a module share."""
    root = tmp_path_factory.mktemp("voc")
    make_voc(root, num_train=6, num_val=4)
    return root


@pytest.fixture
def voc_root(tmp_path: Path) -> Path:
    """A `--data_root` with a small VOC 2012 that the test may spoil."""
    make_voc(tmp_path / "data")
    return tmp_path / "data"


@dataclasses.dataclass
class Finished:
    """How a script ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """The one line on stderr that a user error gives; progress bars are not lines."""
        lines = [line for line in self.stderr.splitlines() if line.startswith("error: ")]
        assert self.status == 2 and len(lines) == 1, self.stderr
        assert "Traceback" not in self.stderr
        return lines[0]

    @property
    def failed(self) -> list[str]:
        """The lines on stderr about images that could not be done, without `failed: `."""
        assert self.status == 1 and "Traceback" not in self.stderr
        lines = self.stderr.splitlines()
        return [line.removeprefix("failed: ") for line in lines if line.startswith("failed: ")]


@pytest.fixture
def run(capsys: pytest.CaptureFixture) -> Callable[..., Finished]:
    """Run a script's `main` in this process: `run(main, "--flag", value)`."""

    def run_in_process(main: Callable, *argv: object) -> Finished:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            run_script(main, [str(word) for word in argv])
        output = capsys.readouterr()
        return Finished(stopped.value.code or 0, output.out, output.err)

    return run_in_process


@pytest.fixture(autouse=True)
def _leave_torch_as_it_was():
    """Scripts set global switches of torch; the next test must not feel them."""
    yield
    torch.use_deterministic_algorithms(False)
