"""How far a run is: what its stage moves on, its recorder shows, and a checkpoint keeps."""

from collections import Counter
from dataclasses import dataclass, field

from orchestration.pipeline.clock import StageClock
from orchestration.pipeline.pipeline import Cursor


@dataclass
class RunProgress:
    version: int = 0  # of the policy: one optimiser step makes one
    resumed_from: Cursor = field(default_factory=Cursor)  # where this start stood in the prompts when it began
    clock: StageClock = field(default_factory=StageClock)
    tokens: Counter[str] = field(default_factory=Counter)  # rolled out, scored, trained
    counts: Counter[str] = field(default_factory=Counter)  # of what the stage leaves out, by reason
