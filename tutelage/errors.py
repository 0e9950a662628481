"""What can go wrong while a run is under way: who raises, who retries, what ends a run.

    wrong settings     ConfigError (`tutelage.settings`): every Refusal at once, before a worker starts
    wrong input        ValueError naming key, value and fix, raised where it is read
    a worker dies      WorkerLost, from any call or stream of `tutelage.cluster.Worker`; WorkerLate after a deadline
    a worker raises    WorkerFailure with the exception's text and the end of the worker's log
    a step fails       LearnerFailure: too many were skipped, or a rank was lost in one
    bad weights        NonFiniteError (`learner.totals`) on every rank: they are neither sent nor saved
    weights not taken  WeightSyncError (`learner.weights.client`) in learner rank 0, a WorkerFailure in the driver
    damaged bytes      ChecksumMismatch (`tutelage.weights`), CheckpointError (`learner.checkpoint`): nothing was loaded
    the user stops     Interrupted

Who retries: a `tutelage.crew.Crew` (the workers of a teacher, the engines) gives what a lost worker was asked to
another one and replaces it, up to recovery.max_restarts times each; a weight update in which an engine died is sent
again to those that live; a server's client repeats requests that the server could not take; a run that has lost a
worker for good begins again from its last checkpoint, as often. A step whose gradient is not finite is skipped.

What ends a run: every other WorkerFailure that reaches the driver. The driver writes a checkpoint first, unless it is a
LearnerFailure: what the learner holds then is of no version. Interrupted ends a run with a checkpoint as well. What is
none of these is a bug of ours, and ends the process with its traceback.
"""


class WorkerFailure(RuntimeError):
    """A worker died, raised, or missed a deadline; the message names it and shows the end of its log."""


class WorkerLost(WorkerFailure):
    """A worker died or missed a deadline: another one could do what it was asked."""


class WorkerLate(WorkerLost):
    """A worker missed a deadline; it may live."""


class LearnerFailure(WorkerFailure):
    """An optimiser step failed: what the learner holds now must not be kept."""


class Interrupted(Exception):
    """The user stopped the run."""
