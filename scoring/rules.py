"""Which teachers cannot do what a run wants of them, judged on the configuration alone."""

import math
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

from scoring.capabilities import capabilities, shortfalls
from scoring.config import TEACHER, Quantization, TeacherBackend, TeacherConfig, TeacherWeights, teacher_setting
from tutelage.records.signal import SignalNeeds
from tutelage.settings import Refusal

_TAKEN = {TEACHER, "reference", "base"}  # whom scoring workers speak for otherwise


def name_refusals(further: Mapping[str, TeacherConfig]) -> Iterator[Refusal]:
    for key in further:
        if key in _TAKEN or not key.isidentifier():
            fix = (
                f"is no name for a further teacher; use letters, digits and _, and none of {', '.join(sorted(_TAKEN))}"
            )
            yield Refusal("further_teachers", key, fix)


def domain_refusals(teachers: Mapping[str, TeacherConfig]) -> Iterator[Refusal]:
    owners: dict[str, str] = {}
    for key, teacher in teachers.items():
        for domain in teacher.domains:
            other = owners.setdefault(domain, key)
            if other != key:
                fix = f"{teacher_setting(other)}.domains has it too; a domain has one teacher, which may mix others"
                yield Refusal(f"{teacher_setting(key)}.domains", domain, fix)


def mixture_refusals(key: str, teacher: TeacherConfig, teachers: Mapping[str, TeacherConfig]) -> Iterator[Refusal]:
    name = f"{teacher_setting(key)}.mixture"
    for member, weight in teacher.mixture.items():
        if member not in teachers or member == key or teachers[member].mixture:
            others = ", ".join(other for other in teachers if other != key and not teachers[other].mixture)
            yield Refusal(name, member, f"is no other teacher that answers for itself; there are {others or 'none'}")
        elif teachers[member].cross_tokenizer:
            yield Refusal(name, member, "has a tokenizer of its own, so its ids are not the others'; leave it out")
        if weight <= 0:
            yield Refusal(f"{name}.{member}", weight, "must be above 0; leave a teacher without weight out")
    total = sum(teacher.mixture.values())
    if not math.isclose(total, 1, abs_tol=1e-6):
        yield Refusal(name, dict(teacher.mixture), f"the weights sum to {total:g}; make it 1")


def cross_tokenizer_refusals(key: str, teacher: TeacherConfig) -> Iterator[Refusal]:
    """A tokenizer of the teacher's own."""
    name = teacher_setting(key)
    if teacher.cross_tokenizer and teacher.backend is TeacherBackend.server and teacher.tokenizer is None:
        fix = f"a server does not tell its tokenizer, and {name}.cross_tokenizer=true needs it; name its checkpoint"
        yield Refusal(f"{name}.tokenizer", None, fix)


_FITTING = (
    "choose an objective on the teacher's own most likely ids (objective=teacher_topk_forward_kl) or on the sampled "
    "token (objective=sampled_reverse_kl)"
)


def backend_refusals(
    key: str, teacher: TeacherConfig, needs: SignalNeeds, gpus: float, overlap_k: int = 0, writes: bool = False
) -> Iterator[Refusal]:
    """What is wrong with a teacher's backend for a run.

    Args:
        key: of the teacher's settings, for instance teacher.
        needs: of the objective.
        gpus: of a scoring worker.
        overlap_k: learner.overlap_k, which needs as many of the teacher's most likely ids; 0 where it is not measured.
        writes: the teacher also writes sequences.
    """
    if teacher.backend in (TeacherBackend.vllm, TeacherBackend.server):
        if teacher.backend is TeacherBackend.server:
            yield from address_refusals(f"{key}.server.url", teacher.server.url)
        yield from _unfit_settings(key, teacher, writes)
        yield from _unmet_needs(key, teacher, needs, gpus, overlap_k)


def address_refusals(key: str, url: str) -> Iterator[Refusal]:
    """What is wrong with an endpoint's address; a password in it is not repeated."""
    parts = urlsplit(url)
    if parts.username or parts.password or parts.query:
        fix = (
            "the address holds more than host, port and path; put the key into an environment variable and name that "
            "in api_key_env"
        )
        yield Refusal(key, parts.hostname, fix)
    elif parts.scheme not in ("http", "https") or not parts.hostname:
        fix = "is no endpoint; give its address up to and with /v1, for instance http://127.0.0.1:8000/v1"
        yield Refusal(key, url, fix)


def _unfit_settings(key: str, teacher: TeacherConfig, writes: bool) -> Iterator[Refusal]:
    backend = f"{key}.backend={teacher.backend.value}"
    if teacher.quantization is not Quantization.none:
        fix = f"{backend} takes weights as they are; set none, or backend=transformers"
        yield Refusal(f"{key}.quantization", teacher.quantization, fix)
    if teacher.weights is not TeacherWeights.fixed:
        fix = f"{backend} takes no new weights; set fixed, or backend=transformers"
        yield Refusal(f"{key}.weights", teacher.weights, fix)
    if writes and teacher.backend is TeacherBackend.server:
        fix = (
            "the teacher also has to write sequences, and an endpoint only scores them; set "
            "objective.sequences.on_policy_fraction=1 or objective.sequences.other_source=dataset, or "
            "backend=transformers"
        )
        yield Refusal(f"{key}.backend", teacher.backend, fix)


def _unmet_needs(
    key: str, teacher: TeacherConfig, needs: SignalNeeds, gpus: float, overlap_k: int
) -> Iterator[Refusal]:
    given = capabilities(teacher, gpus)
    for missing in shortfalls(needs, given):
        other = ", or scoring=gpu" if teacher.backend is TeacherBackend.vllm and needs.candidates else ""
        fix = (
            f"the objective needs {missing}, which this backend cannot give; {_FITTING}, or set "
            f"{key}.backend=transformers{other}"
        )
        yield Refusal(f"{key}.backend", teacher.backend, fix)
    if given.max_top_k is not None and overlap_k > given.max_top_k:
        fix = (
            f"{key}.server.max_top_k={given.max_top_k}, so fewer ids are known; lower it to that (0: the overlap is "
            "not measured), or raise max_top_k to what the endpoint gives"
        )
        yield Refusal("learner.overlap_k", overlap_k, fix)
