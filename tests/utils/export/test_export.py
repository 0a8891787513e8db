"""Exported files against the project's own predictions, and without the project."""

import importlib.util
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

import predict
from network.modeling import build_model
from tests.conftest import ROOT, run_python
from tests.utils.test_checkpoint import randomize
from utils.checkpoint import describe_model
from utils.export import __main__ as export
from utils.export import formats
from utils.export.formats import CAN_EXPORT, FORMATS
from utils.predictor import Predictor

pytestmark = pytest.mark.skipif(not CAN_EXPORT, reason="torch is too old to export")
HAS_ONNX = all(importlib.util.find_spec(n) for n in ("onnx", "onnxscript", "onnxruntime"))
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="ONNX's packages are missing")
NAMES = ["background", "cat", "дом"]
COLOURS = np.uint8([[9, 9, 9], [0, 99, 200], [250, 1, 0]])


def save_checkpoint(folder, name="deeplabv3plus_mobilenet", **settings):
    torch.manual_seed(0)
    args = {"model": name, "output_stride": 16, "separable_conv": True, **settings}
    network = {key: args[key] for key in ("output_stride", "separable_conv")}
    model = randomize(build_model(name, num_classes=3, **network))
    args |= {"dataset": "custom", "data_root": "/home/somebody/pets"}
    torch.save(describe_model(model, args, NAMES, COLOURS), folder / "best.pth")
    return folder / "best.pth"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder with a checkpoint of images at half size, and the names of files made from it."""
    folder = tmp_path_factory.mktemp("run")
    ckpt = str(save_checkpoint(folder, resize=0.5))
    export.main(["--ckpt", ckpt, "--output", str(folder / "model.pt2")])
    if HAS_ONNX:
        export.main(["--ckpt", ckpt, "--output", str(folder / "model.onnx"), "--logits"])
    return folder


def load_predictor(path):
    predictor = Predictor.from_checkpoint(path, torch.device("cpu"), "fp32")
    predictor.resize = 1.0
    return predictor


def random_images():
    return [torch.randint(256, size, dtype=torch.uint8) for size in ((3, 3, 50, 33), (1, 3, 1, 40))]


def test_a_pt2_file_gives_the_predictors_classes_at_any_size_and_names_them(exported):
    extra = {"metadata.json": ""}
    program = torch.export.load(exported / "model.pt2", extra_files=extra)
    metadata = json.loads(extra["metadata.json"])
    assert metadata["class_names"] == NAMES
    assert metadata["palette"] == COLOURS.tolist()
    assert (metadata["output_stride"], metadata["resize"]) == (16, 0.5)
    assert (metadata["model"], metadata["dataset"]) == ("deeplabv3plus_mobilenet", "pets")
    predictor = load_predictor(exported / "best.pth")
    for image in random_images():
        classes = program.module(check_guards=False)(image)
        assert classes.dtype == torch.uint8
        assert (classes == predictor(image)).float().mean() > 0.999


@needs_onnx
def test_logits_of_an_onnx_file_are_the_models_at_any_size(exported):
    program = formats.load_onnx(exported / "model.onnx")
    model = load_predictor(exported / "best.pth").model
    for image in random_images():
        with torch.inference_mode():
            assert torch.allclose(program(image), model(image), rtol=0, atol=1e-4)


def test_files_name_no_folder_of_this_machine(exported):
    for path in exported.glob("model.*"):
        for folder in (str(ROOT), str(exported), torch.__path__[0], "/home/somebody"):
            assert folder.encode() not in path.read_bytes()


# Each head and each family of backbones, both strides, both formats, both inputs and outputs.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "output_stride", "suffix", "flags"),
    [
        ("deeplabv3_mobilenet", 8, ".pt2", ("--logits", "--float_input")),
        ("deeplabv3plus_efficientnet_lite0", 16, ".pt2", ("--float_input",)),
        pytest.param("deeplabv3plus_resnet50", 8, ".onnx", (), marks=needs_onnx),
        pytest.param(
            "deeplabv3_efficientnet_lite0", 16, ".onnx", ("--logits", "--float_input"),
            marks=needs_onnx,
        ),
    ],
)  # fmt: skip
def test_every_kind_of_model_gives_the_predictors_classes(
    run, tmp_path, name, output_stride, suffix, flags
):
    path = save_checkpoint(tmp_path, name, output_stride=output_stride, separable_conv=False)
    output = tmp_path / f"model{suffix}"
    ended = run(export.main, "--ckpt", path, "--output", output, *flags)
    assert ended.status == 0, ended.stderr
    assert float(re.search(r"([\d.]+)% of the classes equal", ended.stdout)[1]) > 99.9
    predictor = load_predictor(path)
    program = FORMATS[suffix][1](output)
    for image in random_images():
        given = predictor.model.normalize(image) if "--float_input" in flags else image
        result = program(given)
        classes = result.argmax(1) if "--logits" in flags else result
        assert (classes == predictor(image)).float().mean() > 0.999


def example(number):
    """A code block of the page about other programs."""
    text = (ROOT / "results" / "export.md").read_text()
    return re.findall(r"```python\n(.*?)```", text, re.S)[number]


def run_alone(code, folder, missing):
    """Run code as if some packages were not installed."""
    code = f"import sys\nsys.modules.update(dict.fromkeys({missing}))\n{code}"
    return run_python(code, cwd=folder)


@needs_onnx
def test_the_example_without_torch_gives_the_masks_of_predict(run, exported, tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    photo = Image.fromarray(colours).resize((700, 900), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    photo.save(exported / "photo.jpg", exif=exif)
    ended = run_alone(example(0), exported, ["torch", "torchvision", "utils", "network"])
    assert ended.returncode == 0, ended.stderr
    words = ("--ckpt", exported / "best.pth", "--output_dir", tmp_path / "out")
    run(predict.main, exported / "photo.jpg", *words, "--device", "cpu", "--precision", "fp32")
    pred, mask = Image.open(tmp_path / "out" / "photo.png"), Image.open(exported / "mask.png")
    assert (mask.mode, mask.size) == ("P", pred.size) and pred.size == (900, 700)
    assert (np.asarray(mask) == np.asarray(pred)).mean() > 0.999
    assert mask.getpalette()[:9] == pred.getpalette()[:9] == COLOURS.flatten().tolist()
    assert len(np.unique(pred)) > 1
    assert "background" in ended.stdout or "cat" in ended.stdout
    assert len(example(0).splitlines()) <= 20


def test_the_example_with_torch_alone_runs(exported):
    code = example(1) + "print(tuple(classes.shape), classes.dtype)"
    ended = run_alone(code, exported, ["utils", "network", "datasets"])
    assert ended.stdout.strip() == "(1, 360, 480) torch.uint8", ended.stderr
    assert len(example(1).splitlines()) <= 5


def test_a_file_that_differs_is_not_kept(run, tmp_path, exported, monkeypatch):
    def load(path):
        return lambda image: torch.full_like(image[:, 0], 7)  # another class

    monkeypatch.setitem(FORMATS, ".pt2", (lambda program, image, about, path: path.touch(), load))
    ended = run(export.main, "--ckpt", exported / "best.pth", "--output", tmp_path / "model.pt2")
    assert ended.status == 2
    assert "model.pt2: not kept: only 0.000% of the classes equal" in ended.stderr
    assert not list(tmp_path.glob("*model*"))


def test_missing_packages_and_unknown_suffixes_are_one_line(run, tmp_path, monkeypatch):
    def error(name):
        return run(export.main, "--ckpt", "none.pth", "--output", tmp_path / name).error

    assert "must end in .onnx or .pt2" in error("model.tflite")
    with monkeypatch.context() as context:
        context.setattr(importlib.util, "find_spec", lambda name: None)
        assert "pip install onnx onnxscript onnxruntime" in error("model.onnx")
    monkeypatch.setattr(formats, "CAN_EXPORT", False)
    assert "needs a newer torch than" in error("model.pt2")
