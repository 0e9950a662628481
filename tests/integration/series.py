"""A process that runs what it is told, one line a run, and keeps the workers in between: see launching.KeptWorkers."""

import asyncio
import json
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from hydra import initialize_config_module

from orchestration.config.compose import build
from orchestration.config.schema import RunConfig
from orchestration.diagnose import diagnose
from orchestration.launch import launch
from orchestration.measure.alignment import measure_alignment
from orchestration.pipeline.fleet import Fleet
from orchestration.precompute import precompute
from orchestration.prepare.inputs import prepare
from orchestration.runs.recipe import compose_run
from rollout.grading import verifier_pool
from tutelage.cluster import Session
from tutelage.files import write_json


async def align(config: RunConfig, session: Session) -> None:
    """Start the workers of a run, measure the alignment, and write it down."""
    prepared = prepare(config)
    fleet = await Fleet.start(config, prepared, session.cluster(config.cluster))
    await fleet.connect()
    with verifier_pool(config.data.verifier, config.timeouts.grading) as verifier:
        found = await measure_alignment(config, prepared, fleet, verifier, print)
    write_json(Path(config.run_dir or "", "alignment.json"), found.as_json())
    await fleet.set_idle()


def perform(command: str, overrides: list[str], session: Session) -> int:
    composed, preset = compose_run("config", overrides)
    try:
        if command == "align":
            asyncio.run(align(build(composed), session))
            return 0
        if command == "diagnose":
            return diagnose(composed, preset, overrides, session)
        if command == "precompute":
            return precompute(composed, preset, session)
        return launch(composed, preset, "config", overrides, session)
    except SystemExit as refusal:
        return int(refusal.code or 0)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not be taken for an answer
    with initialize_config_module("conf", version_base="1.3"), Session() as session:
        for line in sys.stdin:
            job = json.loads(line)
            with Path(job["output"]).open("a") as file, redirect_stdout(file), redirect_stderr(file):
                exit_code = perform(job["command"], job["overrides"], session)
            print(exit_code, file=answers)


if __name__ == "__main__":
    main()
