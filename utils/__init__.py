"""What training and prediction need; of no use beside other packages of the same names."""

import importlib.util
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
