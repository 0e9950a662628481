"""The names of settings: all there are, the nearest to one that there is not, and what former ones are called now."""

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, get_type_hints

from orchestration.config.schema import RunConfig
from tutelage.settings import Refusal, Settings


@dataclass(frozen=True)
class Renamed:
    """What a setting of an older version is called now."""

    key: str
    values: Mapping[str, str] = field(default_factory=dict)  # those that have another name as well


RENAMED = {  # what is said of objective holds for each of objective.further_terms as well
    "objective.states": Renamed("objective.sequences"),
    "objective.states.student_share": Renamed("objective.sequences.on_policy_fraction"),
    "objective.states.others": Renamed("objective.sequences.other_source"),
    "objective.realisation": Renamed("objective.gradient", {"direct": "backprop"}),
    "objective.averaging": Renamed("objective.loss_reduction"),
    "experiment": Renamed("name"),
    "scoring.max_restarts": Renamed("recovery.max_restarts"),
}
_FURTHER_TERM = re.compile(r"objective\.further_terms\.\w+\.")


def keys_of(settings: type, prefix: str = "") -> Iterator[str]:
    """The full names of all fields of a part of the configuration, those of its own parts included."""
    hints = get_type_hints(settings)
    for item in fields(settings):
        yield prefix + item.name
        if is_dataclass(hints[item.name]):
            yield from keys_of(hints[item.name], f"{prefix}{item.name}.")


def unknown_key(key: str, value: object = None) -> str:
    """What to write instead of a key that there is not.

    Args:
        value: that was given to it; None: not known.
    """
    renamed = _renamed(key)
    if renamed is not None:
        now = renamed.key if value is None else f"{renamed.key}={renamed.values.get(str(value), value)}"
        inside = [
            f"{old.removeprefix(key)[1:]} is {new.key}" for old, new in RENAMED.items() if old.startswith(f"{key}.")
        ]
        return f"is called {renamed.key} now; write {', '.join(inside) or now}"
    nearest, group = _nearest_key(key), key.rpartition(".")[0]
    siblings = [name.rpartition(".")[2] for name in keys_of(RunConfig) if group and name.rpartition(".")[0] == group]
    advice = "python -m orchestration.launch --cfg job lists every key"
    if siblings:
        advice = f"{group} has {', '.join(siblings)}"
    if nearest:
        advice = f"did you mean {nearest}?"
    return f"there is no such configuration key; {advice}"


def _renamed(key: str) -> Renamed | None:
    term = _FURTHER_TERM.match(key)
    if term is None:
        return RENAMED.get(key)
    renamed = RENAMED.get(f"objective.{key[term.end() :]}")
    return renamed and Renamed(term.group() + renamed.key.removeprefix("objective."), renamed.values)


def _nearest_key(key: str) -> str | None:
    every = list(keys_of(RunConfig))
    settings = [name for name in every if not any(other.startswith(f"{name}.") for other in every)]
    group, _, leaf = key.rpartition(".")
    siblings = {name.rpartition(".")[2]: name for name in settings if name.rpartition(".")[0] == group}
    near = difflib.get_close_matches(leaf, siblings, n=1, cutoff=0.6)
    if near:
        return siblings[near[0]]
    near = difflib.get_close_matches(key, settings, n=1, cutoff=0.8)
    return near[0] if near else None


def unknown_key_refusals(settings: Settings, prefix: str = "") -> Iterator[Refusal]:
    """Refuse what was added with + and is no setting: nothing would read it."""
    known = {item.name for item in fields(settings)}  # type: ignore[arg-type]
    for name, value in vars(settings).items():
        if name not in known:
            yield from (Refusal(key, at, unknown_key(key, at)) for key, at in _leaves(prefix + name, value))
    for name, part in settings.parts():
        yield from unknown_key_refusals(part, f"{prefix}{name}.")


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, below in value.items():
            yield from _leaves(f"{key}.{name}", below)
    else:
        yield key, value
