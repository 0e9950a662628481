"""What monitors and alarms cost: their share of a step's CPU time, in a run of the lab.

    python -m benchmarks.monitors [--json PATH] [overrides of the run]

A step of the lab is the worst case: its models have under a million parameters, so that nothing else takes long.
`share_of_step` is the CPU seconds of monitors and alarms, as the run itself counts them (`time/monitors_cpu`, of their
thread), over the CPU seconds of all of its processes, Ray's included, between the same two steps.
"""

import argparse
from pathlib import Path

from benchmarks.job import run_job, window
from benchmarks.report import finish, print_table

DEFAULT = ("experiment=lab/compatible", "pipeline.steps=30")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("overrides", nargs="*", default=DEFAULT)
    arguments = parser.parse_args()
    scores, config = run_job(arguments.overrides)
    found = window(scores, config.pipeline.max_staleness)
    monitors, whole = found.stages["monitors_cpu"], sum(found.cpu.values())
    rows = [(name, spent / found.steps, spent / whole) for name, spent in sorted(found.cpu.items())]
    rows.append(("monitors and alarms (of the driver)", monitors / found.steps, monitors / whole))
    print_table("CPU time of a step", ["", "seconds", "share"], rows)
    figures = {
        "share_of_step": monitors / whole,
        "monitor_cpu_seconds_per_step": monitors / found.steps,
        "cpu_seconds_per_step": whole / found.steps,
    }
    finish(figures, arguments.json)


if __name__ == "__main__":
    main()
