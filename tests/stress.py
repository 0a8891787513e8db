"""The long tests: `python -m tests.stress` kills a run 20 times and reads 2,400 damaged files.

    python -m tests.stress --kills 20 --examples 300

A run is killed with SIGKILL at random moments, resumed each time with another number of workers,
and compared bit for bit with a run that was left alone.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.conftest import make_voc
from tests.test_faults import ROOT, finish, run_folder, start
from tests.test_main import assert_same_run

LENGTH = ("--total_itrs", "800", "--val_interval", "40")  # later flags win


def kill_and_compare(kills: int, seed: int) -> None:
    """Kill a run `kills` times; AssertionError if it ends differently."""
    random.seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        data, whole, torn = (Path(folder) / name for name in ("data", "whole", "torn"))
        make_voc(data, num_train=6, num_val=3)
        status, output = finish(start(data, whole, *LENGTH))
        assert status == 0, output
        done = 0
        while done < kills:
            workers = random.choice(("0", "1", "4"))
            # Killed before its first checkpoint there is nothing to resume: the run starts again.
            has_saved = (run_folder(torn) / "last.pth").exists()
            how = "--resume" if has_saved else "--overwrite"
            process = start(data, torn, *LENGTH, "--num_workers", workers, how)
            time.sleep(random.uniform(3, 6))
            if process.poll() is not None:
                output = finish(process)[1]
                raise AssertionError(f"ended by itself after {done} kills: {output}")
            process.kill()
            process.communicate()
            done += 1
            print(f"kill {done}, {workers} workers", flush=True)
        status, output = finish(start(data, torn, *LENGTH, "--resume"))
        assert status == 0, output
        assert_same_run(run_folder(whole), run_folder(torn))
    print(f"{kills} kills: weights, log and best score equal the undisturbed run's")


def main() -> int:
    """Both parts; returns pytest's exit status for the second."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--examples", type=int, default=300, help="damaged files of each kind")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.kills:
        kill_and_compare(args.kills, args.seed)
    environment = {**os.environ, "FUZZ_EXAMPLES": str(args.examples)}
    command = [sys.executable, "-m", "pytest", "tests/test_fuzz.py", "-v"]
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
