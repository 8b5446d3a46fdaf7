"""``isoflop fit``: placeholder while being written."""
from sweeps.config import Config
from sweeps.paths import SweepFolder
def fit_sweep(config: Config, folder: SweepFolder) -> None: ...
