"""The faults that runs are put through."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Fault:
    """What happens at the n-th call of a function, in whichever process, and who is started again for it."""

    who: str
    action: str
    point: str
    call: int
    restarts: Mapping[str, int]  # by role
    overrides: tuple[str, ...] = ()  # of this run
    set_up: tuple[str, ...] = ()  # of the undisturbed run as well
    where: Mapping[str, str] = field(default_factory=dict)  # environment of the processes whose calls count

    @property
    def place(self) -> str:
        """The call, as people are told."""
        return f"{self.point.partition(':')[2]}, call {self.call}"

    def __str__(self) -> str:
        return f"{self.who}-{self.action}-{self.point.rpartition('.')[2]}-{self.call}".replace(" ", "-")


RUN, ROLLOUT, SCORING = {"run": 1}, {"rollout": 1}, {"scoring": 1}
ENGINE, STEP, PUBLISH, SAVE, SCORE = (
    "rollout.engine:RolloutEngine",
    "learner.engine:LearnerEngine.step",
    "learner.weights.publisher:WeightPublisher.publish",
    "learner.checkpoint:save_checkpoint",
    "scoring.backends.transformers:BatchingTeacher.score",
)
LATE = ("timeouts.rollout=20", "timeouts.weight_sync=20", "timeouts.learning=20", "timeouts.scoring=20")
NEW_ENGINE = ("rollout.kv_cache_gib=0.21",)  # that of the run before is of another size
RANKS = ("learner.ranks=2", "learner.zero_stage=2")
FOLLOWS = ("teacher.weights=ema", "teacher.ema_rate=0.5", "teacher.model=${student.model}", "teacher.context=Think.")
FAULTS = [
    Fault("learner", "kill", STEP, 1, RUN),
    Fault("learner", "stop", STEP, 3, RUN, LATE),
    Fault("learner", "kill", PUBLISH, 3, RUN),
    Fault("learner", "kill", "learner.engine:LearnerEngine.evaluate", 1, RUN),
    Fault("learner", "kill", SAVE, 2, RUN),
    Fault("learner", "kill", "learner.export:export", 1, RUN),
    Fault("rollout worker", "kill", f"{ENGINE}.__init__", 1, RUN, NEW_ENGINE),
    Fault("rollout worker", "kill", f"{ENGINE}.generate", 4, ROLLOUT),
    Fault("rollout worker", "stop", f"{ENGINE}.generate", 4, ROLLOUT, LATE),
    Fault("engine's process", "kill children", f"{ENGINE}.generate", 4, ROLLOUT),
    Fault("rollout worker", "kill", f"{ENGINE}.start_weight_update", 3, ROLLOUT),
    Fault("rollout worker", "kill", f"{ENGINE}.update_weights", 3, ROLLOUT),
    Fault("rollout worker", "stop", f"{ENGINE}.update_weights", 3, ROLLOUT, LATE),
    Fault("rollout worker", "kill", f"{ENGINE}.finish_weight_update", 3, ROLLOUT),
    Fault("engine's process", "kill children", f"{ENGINE}.finish_weight_update", 3, ROLLOUT),
    Fault("engine's process", "kill children", f"{ENGINE}.update_weights", 3, ROLLOUT),
    Fault("rollout worker", "kill", f"{ENGINE}.generate", 1, ROLLOUT),
    Fault("scoring worker", "kill", SCORE, 1, SCORING),
    Fault("scoring worker", "kill", SCORE, 9, SCORING),
    Fault("scoring worker", "stop", SCORE, 9, SCORING, LATE),
    *(Fault(f"learner rank {i}", "kill", STEP, 3, RUN, set_up=RANKS, where={"RANK": str(i)}) for i in (0, 1)),
    *(Fault(f"learner rank {i}", "kill", PUBLISH, 3, RUN, set_up=RANKS, where={"RANK": str(i)}) for i in (0, 1)),
    Fault("learner rank 0", "kill", SAVE, 2, RUN, set_up=RANKS, where={"RANK": "0"}),
    Fault("learner rank 1", "stop", STEP, 3, RUN, LATE, RANKS, {"RANK": "1"}),
    Fault("learner rank 1", "kill", SAVE, 2, RUN, set_up=RANKS, where={"RANK": "1"}),
    Fault("averaging teacher", "kill", SCORE, 9, RUN, set_up=FOLLOWS),
    Fault("averaging teacher", "kill", "scoring.backends.follower:Follower.update", 3, RUN, set_up=FOLLOWS),
    Fault("averaging teacher", "stop", "scoring.backends.follower:Follower.update", 3, RUN, LATE, FOLLOWS),
    Fault("grading process", "kill", "rollout.grading:_grade", 3, {}, set_up=("data.verifier=exact",)),
    Fault("checkpoint", "full disk", "orchestration.results.directory:RunDirectory.commit_checkpoint", 1, {}),
    Fault("checkpoint of a rank", "full disk", SAVE, 1, {}),
]
