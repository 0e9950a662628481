"""python -m orchestration.report FOLDER: write report.html of a run, a recipe or a diagnosis once more."""

import argparse
import sys
from pathlib import Path

from orchestration.results.pages import NoReport, write_report


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m orchestration.report", description=__doc__)
    parser.add_argument("folder", type=Path, help="of a run, of a recipe, or of a diagnosis")
    try:
        print(write_report(parser.parse_args().folder))
    except NoReport as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
