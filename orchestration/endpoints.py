"""The servers that teachers are behind, asked before anything starts for what the run will ask them for."""

import asyncio

from orchestration.config import RunConfig
from orchestration.preparation import Prepared
from orchestration.routing import teachers_of
from orchestration.teachers import needed_groups
from scoring.config import TeacherBackend


def check_endpoints(config: RunConfig, prepared: Prepared) -> None:
    """
    Raises:
        ValueError: one does not answer, does not let us in, or cannot give what the config says.
    """
    teachers = teachers_of(config)
    served = [key for key in needed_groups(config, prepared) if teachers[key].backend is TeacherBackend.server]
    if served:
        asyncio.run(_check(config, prepared, served))


async def _check(config: RunConfig, prepared: Prepared, keys: list[str]) -> None:
    from scoring.server import ServerTeacher

    for key in keys:
        backend = ServerTeacher(prepared.teachers[key].path, teachers_of(config)[key], config.scoring)
        try:
            await backend.start()
        finally:
            await backend.close()
