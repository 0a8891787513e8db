"""What happens to a run that is interrupted: real processes, real signals."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from main import main
from tests.conftest import ROOT, Finished, run_python
from tests.test_main import SMALL, assert_same_run, load

pytestmark = pytest.mark.slow  # each test starts programs
FLAGS = (*SMALL, "--total_itrs", "24", "--val_interval", "4", "--save_interval", "1")
RUN_MAIN = "\nfrom main import main; from utils.common.errors import run_script; run_script(main)"


def start(data, runs, *more, before=""):
    """Start main.py; `before` is code that its process runs first."""
    program = ["-c", before + RUN_MAIN] if before else ["main.py"]
    flags = [*FLAGS, "--data_root", data, "--runs_dir", runs, *more]
    return subprocess.Popen(
        [sys.executable, *program, *(str(word) for word in flags)],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def finish(process, timeout=600):  # of a busy machine
    output, _ = process.communicate(timeout=timeout)
    return Finished(process.returncode, output, output)


def wait_for(path, process, timeout=300):
    deadline = time.monotonic() + timeout
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


def resume(data, runs, *more):
    """Go on in this process: torch is imported, and one thread adds up as in the others."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        flags = (*FLAGS, "--data_root", data, "--runs_dir", runs, "--resume", *more)
        assert main([str(word) for word in flags]) == 0
    finally:
        torch.set_num_threads(threads)


def run_folder(runs):
    return Path(runs) / "voc_deeplabv3plus_mobilenet_ce"


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data):
    """The runs folder of a run that nothing disturbed."""
    runs = tmp_path_factory.mktemp("whole")
    ended = finish(start(data, runs))
    assert ended.status == 0, ended.stderr
    return runs


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
    ids=["INT", "TERM", "HUP"],
)
def test_signal_is_heard_saves_says_how_to_resume_and_exits(data, whole, tmp_path, number, status):
    runs = tmp_path / "my runs"
    process = start(data, runs, "--num_workers", "1")
    wait_for(run_folder(runs) / "last.pth", process)
    os.killpg(process.pid, number)  # the whole group, as a terminal and torchrun do
    ended = finish(process)
    output = ended.stdout
    assert ended.status == status and "Traceback" not in output and "error" not in output, output
    assert f"{signal.Signals(number).name}: saving after this iteration" in output
    hint = f"--resume --runs_dir '{runs}' --run_name {run_folder(runs).name}"
    assert "stopped at iteration" in output and hint in output
    assert load(run_folder(runs) / "last.pth")["cur_itrs"] < 24
    resume(data, runs)
    assert_same_run(run_folder(whole), run_folder(runs))


def test_training_goes_on_where_nobody_reads_what_it_prints(data, whole, tmp_path):
    process = start(data, tmp_path)
    process.stdout.close()
    assert process.wait(600) == 0
    assert_same_run(run_folder(whole), run_folder(tmp_path))


# What Windows has not, or refuses, taken away before anything of the project is imported.
OTHER_SYSTEM = """
import errno, fcntl, os, signal, sys, torch, torchvision, matplotlib
for module, names in ((os, "register_at_fork setsid sched_getaffinity fork"), (signal, "SIGHUP")):
    for name in names.split():
        delattr(module, name)
get_flags, fsync = fcntl.fcntl, os.fsync
def fsync_of_writers(number):
    if get_flags(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, "Bad file descriptor")
    fsync(number)
os.fsync = fsync_of_writers
real_open = os.open
def open_file(path, *others, **options):
    if os.path.isdir(path):
        raise PermissionError(errno.EACCES, "Permission denied", path)
    return real_open(path, *others, **options)
os.open = open_file
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
import main, predict, visualize
data, runs, *flags = sys.argv[1:]
flags += ["--data_root", data, "--runs_dir", runs]
assert main.main([*flags, "--total_itrs", "2"]) == 0
assert main.main([*flags, "--resume", "--total_itrs", "3"]) == 0
images = data + "/VOCdevkit/VOC2012/JPEGImages"
assert predict.main([images, "--runs_dir", runs, "--output_dir", runs + "/masks"]) == 0
assert not visualize.main(["curves", "--runs_dir", runs, "--output_dir", runs + "/report"])
"""


def test_training_prediction_and_figures_need_nothing_that_posix_alone_has(data, tmp_path):
    ended = run_python(OTHER_SYSTEM, data, tmp_path, *SMALL)
    assert ended.returncode == 0, ended.stderr
    assert len(list((tmp_path / "masks").rglob("*.png"))) >= 9
    assert list((tmp_path / "report").rglob("*.png"))


def test_second_signal_ends_at_once_and_leaves_whole_files(data, tmp_path):
    process = start(data, tmp_path, "--total_itrs", "1000")
    wait_for(run_folder(tmp_path) / "last.pth", process)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    assert finish(process).status in (-signal.SIGTERM, 143)
    assert load(run_folder(tmp_path) / "last.pth")["cur_itrs"] >= 1


def test_full_disk_keeps_the_last_checkpoint_and_says_so(data, whole, tmp_path):
    # A limit on the size of files is a disk that is full in the middle of a checkpoint.
    shutil.copytree(run_folder(whole), run_folder(tmp_path))
    before = (run_folder(tmp_path) / "last.pth").read_bytes()
    limited = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10**7, 10**7))"
    )
    error = finish(start(data, tmp_path, "--resume", "--total_itrs", "27", before=limited)).error
    assert "last.pth" in error and "previous file is kept" in error
    assert (run_folder(tmp_path) / "last.pth").read_bytes() == before
    assert not list(run_folder(tmp_path).glob(".*.partial"))


def test_run_killed_in_the_middle_of_a_write_resumes_to_the_same_end(data, whole, tmp_path):
    code = (
        "import os, signal, utils.checkpoint as checkpoint\n"
        "save, saved = checkpoint.torch.save, []\n"
        "def save_and_die(content, path):\n"
        "    saved.append(content['cur_itrs'])\n"
        "    save(content, path)\n"
        "    if len(saved) == 3:\n"
        "        os.truncate(path, os.path.getsize(path) // 2)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "checkpoint.torch.save = save_and_die"
    )
    assert finish(start(data, tmp_path, before=code)).status == -signal.SIGKILL
    assert load(run_folder(tmp_path) / "last.pth")["cur_itrs"] == 2
    assert len(list(run_folder(tmp_path).glob(".*.partial"))) == 1
    resume(data, tmp_path, "--num_workers", "1")
    assert not list(run_folder(tmp_path).glob(".*.partial"))
    assert_same_run(run_folder(whole), run_folder(tmp_path))


def test_memory_of_the_machine_that_runs_out_is_one_line(data, tmp_path):
    # From the second iteration on, the process may not grow.
    tight = (
        "import resource\n"
        "import main\n"
        "step, done = main.train_step, []\n"
        "def step_in_tight_memory(network, batch, *others):\n"
        "    if done:\n"
        "        pages = int(open('/proc/self/statm').read().split()[0])\n"
        "        limit = pages * resource.getpagesize() + (1 << 20)\n"
        "        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "        batch = [part.repeat_interleave(64, 0) for part in batch]\n"
        "    done.append(1)\n"
        "    return step(network, batch, *others)\n"
        "main.train_step = step_in_tight_memory"
    )
    error = finish(start(data, tmp_path, before=tight)).error
    assert "out of memory" in error and "--batch_size" in error
    assert load(run_folder(tmp_path) / "last.pth")["cur_itrs"] == 1  # that of before is whole
