"""A process that starts the workers of a run, measures the alignment, and writes it down: FILE OVERRIDE …"""

import asyncio
import json
import sys
from pathlib import Path

from hydra import compose, initialize_config_module

from orchestration.config.compose import build, register_schema
from orchestration.config.schema import RunConfig
from orchestration.measure.alignment import measure_alignment
from orchestration.measure.alignment_record import GradientAlignment
from orchestration.pipeline.fleet import Fleet
from orchestration.prepare.inputs import Prepared, prepare
from rollout.grading import verifier_pool
from tutelage.cluster import Session


async def measure(config: RunConfig, prepared: Prepared, session: Session) -> GradientAlignment:
    fleet = await Fleet.start(config, prepared, session.cluster(config.cluster))
    await fleet.connect()
    with verifier_pool(config.data.verifier, config.timeouts.grading) as verifier:
        return await measure_alignment(config, prepared, fleet, verifier, print)


def main() -> None:
    register_schema()
    with initialize_config_module("conf", version_base="1.3"), Session() as session:
        config = build(compose("config", overrides=["+probe=alignment", *sys.argv[2:]]))
        found = asyncio.run(measure(config, prepare(config), session))
    Path(sys.argv[1]).write_text(json.dumps(found.as_json(), allow_nan=False))


if __name__ == "__main__":
    main()
