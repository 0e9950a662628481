import asyncio
from typing import Any

import pytest

from orchestration.alignment import measure_alignment
from orchestration.config import ConfigError
from tests.orchestration.test_config import configured


def test_it_says_what_it_needs_before_anything_is_asked_of_the_workers() -> None:
    config, nothing = configured(), None
    workers: Any = type("Workers", (), {"scorers": None})()
    prepared: Any = nothing
    with pytest.raises(ConfigError, match=r"data\.verifier=none"):
        asyncio.run(measure_alignment(config, prepared, workers, None, print))
    with pytest.raises(ConfigError, match="needs a teacher; set stage=distil"):
        asyncio.run(measure_alignment(config, prepared, workers, lambda prompt, text: 1.0, print))
