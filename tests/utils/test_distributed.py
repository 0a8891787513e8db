"""Two processes on the CPU, as torchrun starts them."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from main import main
from tests.conftest import ROOT, make_voc
from tests.test_main import SMALL
from utils.common.errors import UserError
from utils.common.files import read_json
from utils.distributed import init_distributed
from utils.loss import LOSSES, AuxiliaryLoss, build_criterion
from utils.run_folder import read_log

FLAGS = (*SMALL, "--batch_size", 4, "--val_interval", 2)

GRADIENTS = """
import sys, torch
from tests.utils.test_distributed import gradients
from utils.common.processes import get_rank
from utils.distributed import all_reduce_sum, distributed, loss_of_all, wrap_model

with distributed("cpu") as device:
    images, targets = (part[get_rank()::2] for part in torch.load(sys.argv[1]))
    wrap, loss = lambda model: wrap_model(model, device), loss_of_all
    results = gradients(images, targets, wrap, loss)
    for name, (value, _) in results.items():
        results[name][0] = all_reduce_sum(torch.tensor(value)).item() / 2
    if get_rank() == 0:
        torch.save(results, sys.argv[2])
"""

LOSS_NAMES = (*LOSSES, "auxiliary")


def gradients(images, targets, wrap, loss):
    """By loss: its value, and the gradient of each parameter of a small network."""
    torch.manual_seed(0)
    results = {}
    for name in LOSS_NAMES:
        model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 5, 1))
        weights = torch.arange(1.0, 6.0) if name in ("ce", "focal", "ce_lovasz") else None
        criterion = build_criterion(name if name in LOSSES else "lovasz", class_weights=weights)
        wrapped = wrap(model)
        logits = wrapped(images)
        if name == "auxiliary":
            criterion, logits = AuxiliaryLoss(criterion, 0.4), (logits, logits.flip(1))
        value = loss(criterion, logits, targets)
        value.backward()
        results[name] = [value.item(), [parameter.grad for parameter in model.parameters()]]
    return results


def torchrun(*command):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return subprocess.run(
        [str(word) for word in (*launch, *command)],
        cwd=ROOT, capture_output=True, text=True, timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    make_voc(root, num_train=8, num_val=7)
    return root


@pytest.fixture(scope="module")
def pair(tmp_path_factory, data):
    """The runs folder of 3 iterations on two processes."""
    runs = tmp_path_factory.mktemp("pair")
    ended = torchrun("main.py", *FLAGS, "--data_root", data, "--runs_dir", runs, "--total_itrs", 3)
    assert ended.returncode == 0, ended.stderr
    return runs


def folder(runs):
    return runs / "voc_deeplabv3plus_mobilenet_ce"


@pytest.mark.slow
def test_loss_and_gradients_of_two_processes_are_one_processs_for_every_loss(tmp_path):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 12, 12, generator=generator)
    targets = torch.randint(0, 5, (4, 12, 12), generator=generator)
    targets[0, :10] = 255  # the processes have different numbers of valid pixels
    targets[1][targets[1] == 3] = 2  # and other classes
    torch.save([images, targets], tmp_path / "batch.pt")
    (tmp_path / "gradients.py").write_text(GRADIENTS)
    ended = torchrun(tmp_path / "gradients.py", tmp_path / "batch.pt", tmp_path / "results.pt")
    assert ended.returncode == 0, ended.stderr
    results = torch.load(tmp_path / "results.pt")
    expected = gradients(images, targets, lambda model: model, lambda f, *batch: f(*batch))
    assert set(results) == set(expected) == set(LOSS_NAMES)
    for name, (value, of_parameters) in expected.items():
        assert results[name][0] == pytest.approx(value, rel=1e-5), name
        for own, other in zip(of_parameters, results[name][1], strict=True):
            assert (own - other).abs().max() < 1e-6 < 1e-4 < own.abs().max(), name


@pytest.mark.slow
def test_two_processes_score_exactly_what_one_scores(pair, data, run):
    record = read_log(folder(pair))[-1]
    ended = run(
        main, "--data_root", data, "--test_only", "--ckpt", folder(pair) / "last.pth",
        "--device", "cpu", "--precision", "fp32", "--num_workers", 0,
    )  # fmt: skip
    assert ended.status == 0, ended.stderr
    scores = read_json(folder(pair) / "scores_val_last.json")
    assert scores["class_iou"] == record["class_iou"] and scores["miou"] == record["miou"]


@pytest.mark.slow
def test_run_goes_from_two_processes_to_one_and_back(pair, data, run):
    resume = ("--runs_dir", pair, "--run_name", folder(pair).name, "--resume")
    content = torch.load(folder(pair) / "last.pth", weights_only=True)
    assert content["cur_itrs"] == 3
    ended = run(main, *resume, "--total_itrs", 5)
    assert ended.status == 0 and "at iteration 3" in ended.stdout, ended.stderr
    ended = torchrun("main.py", *resume, "--total_itrs", 6)
    assert ended.returncode == 0 and "at iteration 5" in ended.stdout, ended.stderr
    iterations = [record["iteration"] for record in read_log(folder(pair))]
    assert iterations == [3, 4, 5, 6] and ended.stdout.count("resumed") == 1


@pytest.mark.slow
def test_process_that_fails_ends_the_others_long_before_their_timeout(data, tmp_path):
    script = tmp_path / "failing.py"
    script.write_text(
        "import os, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from datasets.voc import SegmentationDataset as Data\n"
        "from utils.common.errors import UserError, run_script\n"
        "read = Data.__getitem__\n"
        "def fail(self, index):\n"
        "    if os.environ['RANK'] == '1': raise UserError('rank 1 fails')\n"
        "    return read(self, index)\n"
        "Data.__getitem__ = fail\n"
        "from main import main; run_script(main)\n"
    )
    ended = torchrun(script, *FLAGS, "--data_root", data, "--runs_dir", tmp_path)
    assert ended.returncode != 0 and "rank 1 fails" in ended.stderr


@pytest.fixture
def torchrun_variables(monkeypatch):
    """What torchrun tells the second of two processes."""
    variables = {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 1, "MASTER_ADDR": "h", "MASTER_PORT": 1}
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))


def test_variables_of_torchrun_that_are_missing_are_named(torchrun_variables, monkeypatch):
    monkeypatch.delenv("MASTER_ADDR")
    with pytest.raises(UserError, match="RANK and WORLD_SIZE are set, but not MASTER_ADDR: start"):
        init_distributed("cpu")
    monkeypatch.delenv("RANK")  # a cluster's own, without torchrun
    assert init_distributed("cpu") == torch.device("cpu")


def test_each_process_touches_its_own_gpu_alone(torchrun_variables, monkeypatch):
    touched = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", touched.append)
    real = torch.device
    monkeypatch.setattr(
        "utils.distributed.choose_device", lambda name: touched.append(name) or real(name)
    )
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **__: None)
    assert init_distributed("auto") == init_distributed("cuda") == torch.device("cuda", 1)
    assert touched == 2 * [1, "cuda:1"]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="--nproc_per_node: process 2 has no GPU: 2 are here"):
        init_distributed("auto")
