"""python -m orchestration.lab build | table: make the lab's models, and show what the lab shows."""

import argparse
import os
import sys
from pathlib import Path

from hydra import initialize_config_module

from orchestration.cli import refusing_wrong_settings
from orchestration.lab.build import build
from orchestration.lab.series import RunFailed
from orchestration.lab.table import make_table


def main() -> None:
    os.environ.setdefault("WANDB_SILENT", "true")
    parser = argparse.ArgumentParser(prog="python -m orchestration.lab", description=__doc__)
    commands = parser.add_subparsers(required=True)
    building = commands.add_parser("build", help="make the models that are missing")
    building.add_argument("names", nargs="*", help="of models; none: all")
    building.add_argument("--work", type=Path, default=Path("outputs/lab/build"), help="where the runs go")
    building.set_defaults(run=lambda given: build(given.names, given.work))
    table = commands.add_parser("table", help="run every phenomenon over several seeds and write the page")
    table.add_argument("names", nargs="*", help="of phenomena; none: all")
    table.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    table.add_argument("--root", type=Path, default=Path("outputs/lab/table"), help="where runs and page go")
    table.set_defaults(run=lambda given: make_table(given.names, given.seeds, given.root))
    given = parser.parse_args()
    try:
        with initialize_config_module("conf", version_base="1.3"), refusing_wrong_settings():
            given.run(given)
    except RunFailed as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
