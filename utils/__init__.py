"""What training and prediction need; of no use beside other packages of the same names."""

import importlib.util
import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

for name in ("datasets", "network"):
    spec = importlib.util.find_spec(name)
    for folder in (spec and spec.submodule_search_locations) or ():
        if Path(folder).resolve() != ROOT / name:
            raise ImportError(
                f"'{name}' is {folder}, not this repository's: put {ROOT} first on sys.path, "
                "in a process that does not need the other"
            )

# GNU's OpenMP reads this when torch loads it: its threads wait 300,000 rounds awake before they
# sleep, which on two cores keeps a data worker, or another run, from computing.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
