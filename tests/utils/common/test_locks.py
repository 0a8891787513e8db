"""One kind of lock between processes and threads."""

import os
import signal
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from utils.common.errors import UserError
from utils.common.locks import locked


def test_lock_ends_with_its_process_even_if_a_child_of_that_lives_on(tmp_path):
    path = tmp_path / "x.lock"
    code = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from utils.common.locks import locked\n"
        "with locked(Path(sys.argv[1])):\n"
        "    if os.fork():\n"
        "        print('held', flush=True)\n"
        "    time.sleep(30)\n"
    )
    command = [sys.executable, "-c", code, str(path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match="another process"), locked(path, timeout=0.3):
            pass
        process.kill()
        process.wait()
        with locked(path, timeout=0):
            pass
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
