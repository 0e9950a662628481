"""What a person sees while a run works: one bar, the stage each worker is in, and a line a step in a log."""

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from learner.records import StepReport
from orchestration.pipeline.progress import StageClock
from tutelage.console import PlainConsole, printable

log = logging.getLogger("tutelage")
REFRESH_SECONDS = 0.5
SHOWN_STAGES = ("rollout", "scoring", "learning", "weight_sync", "evaluation")


class ProgressView:
    """A live bar on a terminal; plain lines everywhere else. The log file always gets the lines."""

    def __init__(self, stage: str, steps: int, done: int, clock: StageClock) -> None:
        self.console = PlainConsole()
        self._clock = clock
        self._live = self.console.is_terminal
        self._bar = Progress(
            TextColumn("{task.fields[stage]}", style="bold", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}", markup=False),
            console=self.console,
        )
        self._task = self._bar.add_task("starting", total=steps, completed=done, stage=printable(stage))
        self._ready = 0
        self._note = ""
        self._refreshing: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        if self._live:
            self._bar.start()
            self._refreshing = asyncio.get_running_loop().create_task(self._refresh())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._refreshing is not None:
            self._refreshing.cancel()
            with suppress(RuntimeError):
                self._bar.stop()

    def say(self, text: str) -> None:
        log.info(printable(text))
        self.console.print(text)

    def warn(self, text: str) -> None:
        log.warning(printable(text))
        self.console.print(text, style="yellow")

    def error(self, text: str) -> None:
        log.error(printable(text))
        self.console.print(f"error: {text}", style="red")

    def step(self, report: StepReport, metrics: Mapping[str, float], ready: int) -> None:
        divergence = metrics.get("train/sampled_reverse_kl")
        accuracy = metrics.get("rollout/accuracy")
        overran = metrics.get("rollout/grading_timeouts")
        line = (
            f"step {report.policy_version}  loss {report.loss:.4f}  "
            f"{'' if divergence is None else f'reverse KL (sampled) {divergence:.3f}  '}"
            f"{'' if accuracy is None else f'accuracy {accuracy:.3f}  '}"
            f"{f'grading timeouts {overran:.0f}  ' if overran else ''}"
            f"response {metrics['rollout/mean_response_tokens']:.1f} tokens  grad norm {report.grad_norm:.2f}  "
            f"staleness {metrics['rollout/staleness_max']:.0f}  learning {report.seconds:.1f} s"
        )
        self._ready = ready
        self._note = f"loss {report.loss:.3f}"
        self._bar.update(self._task, completed=report.policy_version)
        log.info(line)
        if not self._live:
            self.console.print(line, soft_wrap=True)

    async def _refresh(self) -> None:
        while True:
            busy = [f"{name} {self._clock.active(name)}" for name in SHOWN_STAGES if self._clock.active(name)]
            self._bar.update(self._task, description=" · ".join([*busy, f"ready {self._ready}", self._note]))
            await asyncio.sleep(REFRESH_SECONDS)
