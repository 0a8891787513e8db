"""Two processes on the CPU, as torchrun starts them."""

import os
import subprocess
import sys
import time

import pytest
import torch

from tests.conftest import ROOT, make_voc
from utils.run_folder import read_log

FLAGS = (
    "--model", "deeplabv3plus_mobilenet", "--backbone_weights", "none", "--crop_size", "48",
    "--batch_size", "4", "--num_workers", "0", "--precision", "fp32", "--device", "cpu",
    "--val_interval", "2",
)  # fmt: skip

GRADIENTS = """
import sys, torch
from torch import nn
from utils.distributed import (
    end_distributed, get_rank, init_distributed, loss_share, wait_for_all, wrap_model
)
from utils.loss import build_criterion

device = init_distributed(torch.device("cpu"))
batch = torch.load(sys.argv[1])
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 5, 1))
wrapped = wrap_model(model, device)
for loss in ("ce", "focal"):
    criterion = build_criterion(loss, class_weights=torch.arange(1.0, 6.0))
    images, targets = (part[get_rank()::2] for part in batch)
    model.zero_grad()
    (criterion(wrapped(images), targets) * loss_share(criterion, targets)).backward()
    if get_rank() == 0:
        torch.save([p.grad for p in model.parameters()], f"{sys.argv[2]}/{loss}.pt")
wait_for_all()
end_distributed()
"""


def torchrun(*command, timeout=180):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return subprocess.run(
        [str(word) for word in (*launch, *command)],
        cwd=ROOT, capture_output=True, text=True, timeout=timeout,
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


def test_gradients_of_two_processes_are_one_processs(tmp_path):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 12, 12, generator=generator)
    targets = torch.randint(0, 5, (4, 12, 12), generator=generator)
    targets[0, :10] = 255  # the processes have different numbers of valid pixels
    torch.save([images, targets], tmp_path / "batch.pt")
    (tmp_path / "gradients.py").write_text(GRADIENTS)
    ended = torchrun(tmp_path / "gradients.py", tmp_path / "batch.pt", tmp_path)
    assert ended.returncode == 0, ended.stderr

    from utils.loss import build_criterion

    torch.manual_seed(0)
    nn = torch.nn
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 5, 1))
    for loss in ("ce", "focal"):
        model.zero_grad()
        criterion = build_criterion(loss, class_weights=torch.arange(1.0, 6.0))
        criterion(model(images), targets).backward()
        for parameter, gradient in zip(
            model.parameters(), torch.load(tmp_path / f"{loss}.pt"), strict=True
        ):
            assert (parameter.grad - gradient).abs().max() < 1e-6
            assert gradient.abs().max() > 1e-3


def test_two_processes_score_exactly_what_one_scores(pair, data, run):
    from main import main

    record = read_log(folder(pair))[-1]
    ended = run(
        main, "--data_root", data, "--test_only", "--ckpt", folder(pair) / "last.pth",
        "--device", "cpu", "--precision", "fp32", "--num_workers", 0,
    )  # fmt: skip
    assert ended.status == 0, ended.stderr
    from utils.common.files import read_json

    scores = read_json(folder(pair) / "scores_val_last.json")
    assert scores["class_iou"] == record["class_iou"] and scores["miou"] == record["miou"]


def test_run_goes_from_two_processes_to_one_and_back(pair, data, run):
    from main import main

    resume = ("--runs_dir", pair, "--run_name", folder(pair).name, "--resume")
    content = torch.load(folder(pair) / "last.pth", weights_only=True)
    assert content["cur_itrs"] == 3
    ended = run(main, *resume, "--total_itrs", 5)
    assert ended.status == 0 and "at iteration 3" in ended.stdout, ended.stderr
    ended = torchrun("main.py", *resume, "--total_itrs", 6)
    assert ended.returncode == 0 and "at iteration 5" in ended.stdout, ended.stderr
    iterations = [record["iteration"] for record in read_log(folder(pair))]
    assert iterations == [3, 4, 5, 6] and ended.stdout.count("resumed") == 1


def test_process_that_fails_ends_the_others_within_a_minute(data, tmp_path):
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
    began = time.monotonic()
    ended = torchrun(script, *FLAGS, "--data_root", data, "--runs_dir", tmp_path, timeout=90)
    assert ended.returncode != 0 and "rank 1 fails" in ended.stderr
    assert time.monotonic() - began < 60
