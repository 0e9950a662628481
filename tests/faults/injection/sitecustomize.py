"""Faults at named calls, in every process of a run: Python imports this file where its folder is on the path.

    fault.json in $TUTELAGE_TEST_FAULTS   point, number of the call, action, environment of the processes that count
    calls-<id>                            a byte a call so far, whichever process made it

A point is "module:function" or "module:Class.method". The product knows nothing of it: the module's functions are
replaced as it is imported.
"""

import errno
import functools
import importlib.abc
import importlib.machinery
import inspect
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = os.environ.get("TUTELAGE_TEST_FAULTS")
POINTS = (
    "rollout.engine:RolloutEngine.__init__",
    "rollout.engine:RolloutEngine.generate",
    "rollout.engine:RolloutEngine.start_weight_update",
    "rollout.engine:RolloutEngine.update_weights",
    "rollout.engine:RolloutEngine.finish_weight_update",
    "rollout.grading:_grade",
    "scoring.backends.transformers:BatchingTeacher.score",
    "scoring.backends.follower:Follower.update",
    "learner.engine:LearnerEngine.step",
    "learner.head.fused_loss:fused_head_loss",
    "learner.engine:LearnerEngine.evaluate",
    "learner.weights.publisher:WeightPublisher.publish",
    "learner.checkpoint:save_checkpoint",
    "learner.export:export",
    "orchestration.runs.recorder:Recorder.step",
    "orchestration.runs.recorder:Recorder.save",
    "orchestration.results.directory:RunDirectory.commit_checkpoint",
)


def _children() -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.append(int(stat.parent.name))
        except OSError:  # it has ended
            continue
    return found


def _strike(action: str) -> None:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "kill children":
        for pid in _children():
            os.kill(pid, signal.SIGKILL)
    elif action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif action == "raise":
        raise RuntimeError("an injected fault")
    elif action == "full disk":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    elif action.startswith("sleep "):
        time.sleep(float(action.removeprefix("sleep ")))
    else:
        raise AssertionError(f"no such action: {action}")


def _visit(point: str) -> bool:
    """Count a call and do what is planned for it; returns whether its result is to be spoilt."""
    try:
        fault = json.loads(Path(FOLDER or "", "fault.json").read_text())
    except FileNotFoundError:
        return False
    if fault["point"] == point and fault.get("where", {}).items() <= os.environ.items():
        with Path(FOLDER or "", f"calls-{fault['id']}").open("ab", buffering=0) as calls:
            calls.write(b".")
            number = calls.tell()
        if number == fault["call"] and fault["action"] == "NaN":
            return True
        if number == fault["call"]:
            _strike(fault["action"])
    return False


def _visited(point: str, function: Callable[..., Any]) -> Callable[..., Any]:
    wrapper: Callable[..., Any]
    if inspect.isasyncgenfunction(function):

        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            _visit(point)
            async for item in function(*args, **kwargs):
                yield item

    elif inspect.iscoroutinefunction(function):

        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            _visit(point)
            return await function(*args, **kwargs)

    else:

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            spoilt = _visit(point)
            result = function(*args, **kwargs)
            return (result[0] * float("nan"), *result[1:]) if spoilt else result

    return functools.wraps(function)(wrapper)


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader, points: list[str]) -> None:
        self._loader, self._points = loader, points

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        for point in self._points:
            owner: Any = module
            *path, name = point.partition(":")[2].split(".")
            for part in path:
                owner = getattr(owner, part)
            setattr(owner, name, _visited(point, getattr(owner, name)))


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Any = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        points = [point for point in POINTS if point.partition(":")[0] == fullname]
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target) if points else None
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, points)
        return spec


if FOLDER:
    sys.meta_path.insert(0, _Finder())
