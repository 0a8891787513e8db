"""How a script ends: its status, and the one line that a user reads."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT, run_python
from utils.common.errors import UserError, run_script

IMPORT = "from utils.common.errors import *\n"


@pytest.mark.parametrize(("returned", "status"), [(None, None), (0, 0), (3, 3)])
def test_status_is_what_main_returns(returned, status):
    with pytest.raises(SystemExit) as stopped:
        run_script(lambda argv: returned)
    assert stopped.value.code == status


def test_user_error_is_one_line_and_status_2(capsys):
    def fail(argv):
        raise UserError("two\nlines.jpg: is no image")

    with pytest.raises(SystemExit) as stopped:
        run_script(fail)
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: two\\nlines.jpg: is no image\n"


def test_fault_of_the_program_keeps_its_traceback():
    ended = run_python(IMPORT + "def main(argv): 1 / 0\nrun_script(main)")
    assert ended.returncode == 1 and "ZeroDivisionError" in ended.stderr


def test_ctrl_c_is_one_line_and_status_130():
    code = (
        "import os, signal, time\n"
        "def main(argv):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(30)\n"
        "run_script(main)"
    )
    ended = run_python(IMPORT + code)
    assert ended.returncode == 130
    assert "Traceback" not in ended.stderr
    assert ended.stderr.split("\n")[1:] == [
        "stopped: files that are complete are kept, none is half-written", ""
    ]  # fmt: skip


def test_output_that_nobody_reads_on_ends_a_script_quietly():
    code = (
        "def main(argv):\n"
        "    for number in range(100_000):\n"
        "        print(number)\n"
        "run_script(main)"
    )
    command = [sys.executable, "-c", IMPORT + code]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        assert process.stdout.readline() == b"0\n"
        process.stdout.close()  # as head does
        assert process.stderr.read() == b"" and process.wait(30) == 1


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_name_that_the_output_cannot_print_is_escaped(encoding):
    code = (
        "def main(argv):\n"
        "    print('\\u65e5.png')\n"
        "    raise UserError('\\u65e5.png: is no image')\n"
        "run_script(main)"
    )
    ended = run_python(IMPORT + code, PYTHONIOENCODING=encoding)
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout.split() == [r"\u65e5.png"]
    assert ended.stderr.startswith(r"error: \u65e5.png: is no image")
