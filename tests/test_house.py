"""The house: which module may import which."""

import ast
import importlib
import os
import sys

import pytest
from PIL import Image

import utils
from tests.conftest import ROOT, run_python

SCRIPTS = ("main", "predict", "visualize", "sam_infer")
ROOMS = ("predict", "report", "sam", "benchmark", "export")
THIRD_PARTY = {
    "torch", "torchvision", "numpy", "PIL", "matplotlib", "tqdm", "segment_anything",
}  # fmt: skip
OWN = {"datasets", "network", "utils", *SCRIPTS}
MODULES = sorted(
    str(path.relative_to(ROOT).with_suffix("")).replace("/", ".")
    for part in ("datasets", "network", "utils", *(f"{name}.py" for name in SCRIPTS))
    for path in ([ROOT / part] if part.endswith(".py") else (ROOT / part).rglob("*.py"))
)


def imports_of(module):
    """The dotted names that a module imports, `from a import b` as a.b."""
    tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def floor(name):
    """How far up a name stands: what it imports must stand lower, or in its own room."""
    first, _, rest = name.partition(".")
    second = rest.partition(".")[0]
    if first in SCRIPTS:
        return 4
    if first != "utils":
        return 1
    if second == "common":
        return 0
    return 3 if second in ROOMS else 2


def room(name):
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] == "utils" and parts[1] in ROOMS else parts[0]


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module):
    for name in imports_of(module):
        if name.split(".")[0] not in OWN:
            continue
        assert floor(name) <= floor(module), f"{module} imports {name}, which stands above it"
        if floor(name) in (1, 3, 4) and floor(name) == floor(module):
            is_inside = room(name) == room(module)
            of_data = module.startswith("datasets") and name.startswith("datasets")
            of_sam = room(module) == "utils.report" and name.startswith("utils.sam.mask_files.")
            assert is_inside or of_data or of_sam, f"{module} imports {name} of another room"


@pytest.mark.parametrize("module", MODULES)
def test_only_the_packages_of_the_requirements_are_imported(module):
    standard = sys.stdlib_module_names
    foreign = {name.split(".")[0] for name in imports_of(module)} - OWN - standard
    optional = {"onnxruntime"} if module.startswith("utils.export.") else set()
    assert foreign <= THIRD_PARTY | optional, module
    if "segment_anything" in foreign:
        assert module.startswith("utils.sam."), module
    if "matplotlib" in foreign:
        assert module.startswith(("utils.report.", "visualize", "utils.common.fonts")), module


# What comes at once: help, a mistyped flag, and files that are not there.
AT_ONCE = [
    *((name, ["--help"]) for name in SCRIPTS),
    *((name, ["--lerning_rate", "3"]) for name in SCRIPTS),
    ("main", ["--ckpt", "no.pth"]),
    ("main", ["--test_only", "--ckpt", "no.pth"]),
    ("main", ["--args", "no.json"]),
    ("predict", ["photo.png", "--ckpt", "no.pth"]),
    ("sam_infer", ["photo.png", "--ckpt", "no.pth", "--prompts", "deeplab"]),
    ("visualize", ["curves", "--runs", "no_run"]),
]


def test_help_and_errors_import_nothing_slow(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    code = f"""
import contextlib, sys
sys.path.insert(0, {str(ROOT)!r})
import torch
before = set(sys.modules)
import main, predict, visualize, sam_infer
from utils.common.errors import run_script
for script, argv in {AT_ONCE!r}:
    with open("output", "w") as file, contextlib.redirect_stdout(file):
        try:
            run_script(sys.modules[script].main, argv)
        except SystemExit as stopped:
            status = stopped.code
    assert status == (0 if argv == ["--help"] else 2), (script, argv, status)
print(*sorted(set(sys.modules) - before))
"""
    ended = run_python(code, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == len(AT_ONCE) - len(SCRIPTS), ended.stderr
    imported = ended.stdout.split()
    foreign = {name.split(".")[0] for name in imported} - OWN - set(sys.stdlib_module_names)
    assert {name for name in foreign if not name.startswith("_")} <= {"PIL", "numpy", "tqdm"}
    assert len(imported) < 150 and not any(name.startswith("torch._dynamo") for name in imported)


@pytest.mark.parametrize("module", ["utils.loss", "utils.metrics"])
def test_losses_and_metrics_see_tensors_alone(module):
    own = {name for name in imports_of(module) if name.split(".")[0] in OWN}
    assert own <= {"utils.common.errors.UserError"}


def test_utils_is_no_drawer():
    assert len(list((ROOT / "utils").glob("[!_]*.py"))) <= 16


def test_tests_mirror_the_tree():
    for path in (ROOT / "tests").rglob("test_*.py"):
        folder = path.relative_to(ROOT / "tests").parent
        assert (ROOT / folder).is_dir(), f"{path}: tests nothing that is there"


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("network._deeplab", "ASPPConv ASPPPooling ASPP DeepLabHead DeepLabHeadPlus"),
        ("datasets.voc", "VOCSegmentation decode_target"),
        ("utils.loss", "FocalLoss"),
    ],
)
def test_the_courses_names_are_where_the_course_looks_for_them(module, names):
    for name in names.split():
        assert getattr(importlib.import_module(module), name).__module__ == module


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_set_what_openmp_reads_before_torch_is_imported(script):
    assert next(imports_of(script)) == "utils"


@pytest.mark.parametrize(
    ("own", "count"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_threads_fall_asleep_soon_unless_the_user_says_otherwise(monkeypatch, own, count):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    importlib.reload(utils)
    assert os.environ.get("GOMP_SPINCOUNT") == count
