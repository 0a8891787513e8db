"""The README's lines of Python, and what other packages of the same names do to them."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from network.modeling import build_model
from tests.conftest import ROOT, run_python
from utils.checkpoint import describe_model

MODEL = "deeplabv3plus_mobilenet"


def lines_of_the_readme():
    """The block that imports the predictor."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    (code,) = (block for block in blocks if "Predictor" in block)
    return code


def test_three_lines_of_the_readme_predict(tmp_path):
    model = build_model(MODEL, num_classes=2)
    args = {"model": MODEL, "separable_conv": False, "output_stride": 16}
    content = describe_model(model, args, ["ground", "cat"])
    (tmp_path / "runs" / "NAME").mkdir(parents=True)
    torch.save(content, tmp_path / "runs" / "NAME" / "best.pth")
    photo = np.random.default_rng(0).integers(0, 256, (33, 47, 3), dtype=np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.jpg")
    code = lines_of_the_readme()
    assert len(code.splitlines()) == 3
    shown = "print(classes.shape, classes.dtype, predictor.class_names, predictor.palette.shape)"
    ended = run_python(code + shown, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split("\n")[-2] == "(33, 47) uint8 ['ground', 'cat'] (2, 3)"


@pytest.mark.parametrize("name", ["datasets", "network"])
@pytest.mark.parametrize("is_imported", [False, True])
def test_another_package_of_the_same_name_is_named(tmp_path, name, is_imported):
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    before = f"import {name}; del sys.path[0]" if is_imported else ""
    path = f"import sys; sys.path[:0] = {[str(tmp_path), str(ROOT)]}"
    ended = run_python(f"{path}\n{before}\nfrom utils.predictor import Predictor")
    assert ended.returncode == 1
    last = ended.stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: '{name}' is {tmp_path / name}, not this repository's")
    assert str(ROOT) in last
