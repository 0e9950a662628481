"""What a run does about alarms: it tells of them, and ends where one of their remedies says so.

The weights in final/ after a remedy: stop ─► as they are; roll_back ─► of the last checkpoint before its windows.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from diagnostics.alarms import Alarm, Watch, most_severe
from diagnostics.config import AlarmsConfig, Remedy
from orchestration.results.directory import RunDirectory, read_state, read_summary, whole_checkpoints
from orchestration.results.progress import ProgressView
from orchestration.results.tracker import X_AXIS, Tracker


class AlarmResponder:
    """Watches a run's metrics for it.

    Args:
        earlier: the run's metrics so far. An alarm that was raised in them is not raised again, so that a run that it
            stopped can be resumed.
        remedies: that earlier starts of the run took.
    """

    def __init__(
        self,
        config: AlarmsConfig,
        view: ProgressView,
        tracker: Tracker,
        earlier: Sequence[Mapping[str, float]],
        remedies: Sequence[str] = (),
    ) -> None:
        self._view, self._tracker = view, tracker
        self._watch = Watch(config.rules)
        for row in earlier:
            self._watch.observe(int(row[X_AXIS]), row)
        self._checked_for_blind = bool(earlier)
        self.ending: Alarm | None = None  # the alarm whose remedy ends the run
        self.remedies = list(remedies)  # that were taken

    @property
    def raised(self) -> list[str]:
        return [alarm.message for alarm in self._watch.alarms]

    @property
    def may_roll_back(self) -> bool:
        return self._watch.may_roll_back

    def observe(self, version: int, metrics: Mapping[str, float]) -> list[Alarm]:
        return self._watch.observe(version, metrics)

    def tell(self, alarms: Sequence[Alarm]) -> None:
        """Log, print and send alarms that were just raised; the most_severe one's remedy is to be taken."""
        for alarm in alarms:
            self._view.warn(f"alarm: {alarm.message}")
            self._tracker.alert(f"alarm: {alarm.name}", alarm.message)
        self.ending = most_severe(alarms) or self.ending

    def name_blind_rules(self) -> None:
        """Say once, after the first step, which rules watch what this run does not measure."""
        if self._checked_for_blind:
            return
        self._checked_for_blind = True
        for name, metric in self._watch.blind().items():
            self._view.warn(
                f"alarms.rules.{name}.metric={metric}: no step of this run has it; metrics.jsonl names what there is"
            )

    def record_remedy(self, alarm: Alarm, good: Path | None, version: int) -> None:
        """Log, print and send what was done about an alarm.

        Args:
            good: the checkpoint that was gone back to.
            version: of the weights that the run ends with.
        """
        done = Remedy.stop if good is None else Remedy.roll_back
        remedy = f"{done.value} after step {alarm.step} ({alarm.name}): final/ is step {version}"
        if done is not alarm.rule.remedy:
            remedy += f", since there is no checkpoint from before step {alarm.since}"
        self.remedies.append(remedy)
        self._view.warn(f"remedy: {remedy}")
        self._tracker.alert("remedy", remedy)


def remedies_so_far(run_dir: Path) -> list[str]:
    """Those that the summary of an earlier start lists."""
    summary = read_summary(run_dir)
    return [] if summary is None else list(summary.get("remedies", []))


def checkpoint_to_end_with(alarm: Alarm | None, directory: RunDirectory) -> Path | None:
    """The last checkpoint from before the windows of an alarm that is to roll back; None if there is none, or no need.

    A run that is to roll back begins with a checkpoint of the initial student; only one that was resumed under a rule
    that it did not begin with may have none.
    """
    if alarm is None or alarm.rule.remedy is not Remedy.roll_back:
        return None
    states = {path: read_state(path) for path in whole_checkpoints(directory.path)}
    good = [path for path, state in states.items() if state is not None and state.step < alarm.since]
    return good[-1] if good else None


def set_aside_after(good: Path, directory: RunDirectory) -> None:
    """Give later checkpoints another name, so that they stay and a resumed run does not continue from them."""
    checkpoints = whole_checkpoints(directory.path)
    for path in checkpoints[checkpoints.index(good) + 1 :]:
        aside = path.with_suffix(".rolled_back")
        shutil.rmtree(aside, ignore_errors=True)  # of an earlier roll-back of this run
        path.rename(aside)
