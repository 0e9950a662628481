"""A small diagnosis and a small run, made up, for the tests of their pages."""

from typing import Any

from diagnostics.report.run_page import RunRecord

ATTACK = '</script><script>alert(1)</script><img src=x onerror="alert(2)">'


def interval(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.02, "high": mean + 0.03}


def token(text: str, student: float, teacher: float, **more: Any) -> dict[str, Any]:
    return {
        "text": text,
        "student_logprob": student,
        "teacher_logprob": teacher,
        "reverse_kl": max(0.0, student - teacher),
        "student_top": [[text, student, teacher], ["seven", -2.5, -1.75]],
        "teacher_top": [["eight", -3.25, -0.125], [text, student, teacher]],
        **more,
    }


def trajectory(index: int, reward: float | None, *tokens: dict[str, Any]) -> dict[str, Any]:
    return {
        "prompt_id": f"sum-{index}",
        "sample_index": index,
        "prompt": f"{index}+8=",
        "response": "".join(item["text"] for item in tokens),
        "reward": reward,
        "tokens": list(tokens),
    }


def diagnosis() -> dict[str, Any]:
    statistics = {
        "overlap_ratio": interval(0.51),
        "reverse_kl": interval(0.22),
        "overlap_token_advantage": interval(-0.06),
    }
    buckets = [{"from": 0, "to": 1, **interval(0.6), "tokens": 9}, {"from": 4, "to": 8, **interval(0.4), "tokens": 30}]
    return {
        "command": "python -m orchestration.diagnose experiment=lab/compatible",
        "created": "2026-01-02 03:04",
        "machine": {"cores": 2},
        "versions": {"torch": "2.13.0"},
        "seconds": 61.0,
        "verdict": {
            "verdict": "go_with_cold_start",
            "predicted_change": interval(0.31),
            "unit": "accuracy",
            "evidence": ["The teacher scores 0.99 where the student scores 0.57."],
            "recommended_command": "python -m orchestration.launch recipe=cold_start_then_distil",
        },
        "preflight": {
            "seconds": 12.0,
            "checks": [
                {"name": "tokenizers", "status": "pass", "seen": "22 ids are the same", "fix": ""},
                {"name": "prompts", "status": "fail", "seen": "train and held-out overlap", "fix": "another split"},
            ],
        },
        "probe": {
            "prompts": 64,
            "samples_per_prompt": 4,
            "k": 16,
            "vocabulary": 22,
            "accuracy": {"student": interval(0.57), "teacher": interval(0.97)},
            "statistics": statistics,
            "by_position": {"overlap_ratio": buckets},
            "by_correctness": {"correct": statistics, "incorrect": statistics},
            "by_domain": {"sums": statistics, "letters": statistics},
            "auroc": interval(0.83),
            "prefix_depth": [
                {
                    "depth": d,
                    "student": interval(0.5),
                    "teacher": interval(0.9 - d / 2),
                    "advantage": interval(0.4 - d / 2),
                    "n": 64,
                }
                for d in (0.0, 0.25, 0.5)
            ],
            "new_knowledge": {"prompts_student_failed": 9, "teacher_pass_at_k": interval(0.8), "share_of_gap": 0.4},
            "representation": {"layers": [{"layer": n, "cka": 0.9, "attention_agreement": 0.8} for n in range(3)]},
        },
        "alignment": {
            "cost": {"completions": 480},
            "summary": {
                name: {"reverse_kl": interval(mean)} for name, mean in (("correct", 0.11), ("incorrect", 0.42))
            },
            "proxies": {"advantage": interval(0.63), "entropy": None},
            "candidates": [[{"token": "x"}]],
            "tables": {
                "by_correctness": [{"stratum": "incorrect", "cosine": interval(0.41), "nodes": 61}],
                "by token": [{"token": "x", "jsd": 0.25, "jsd_low": 0.1, "jsd_high": None}] * 40,
            },
        },
        "trajectories": [
            trajectory(0, 1.0, token("eight", -0.5, -0.125), token("\n", -0.01, -0.02)),
            trajectory(1, 0.0, token("nine", -0.25, -6.5), token(" point", -1.0, -0.95)),
        ],
        "config": {
            "student": {"model": "lab/student"},
            "teacher": {"model": "lab/carries", "context": None},
            "seed": 0,
        },
    }


def evaluation(accuracy: float | None, divergence: float | None) -> dict[str, Any]:
    values = {"accuracy": accuracy, "reverse_kl": divergence, "mean_response_tokens": 26.0}
    known = {name: value for name, value in values.items() if value is not None}
    return {"n_prompts": 64, **values, "intervals": {name: interval(value) for name, value in known.items()}}


def summary(status: str = "completed", **more: Any) -> dict[str, Any]:
    return {
        "status": status,
        "steps": 3,
        "wall_seconds": 130.5,
        "stage_seconds": {"rollout": 68.0, "scoring": 32.0},
        "tokens": {"rollout": 99904, "trained": 99904},
        "evaluation": {
            "student_before": evaluation(0.57, 0.25),
            "student_after": evaluation(0.91, 0.04),
            "teacher": evaluation(0.99, None),
        },
        "gap_recovery": 0.81,
        "counts": {},
        "alarms": [],
        "remedies": [],
        **more,
    }


def run_sample(prompt_id: str, reward: float | None = None) -> dict[str, Any]:
    return {
        "prompt_id": prompt_id,
        "sample_index": 0,
        "origin": "student",
        "prompt": "7+8=",
        "response": "15",
        "reward": reward,
        "tokens": ["1", "5"],
        "student_logprobs": [-0.1, -0.2],
        "teacher_logprobs": [-0.3, -5.0],
        "mean_log_ratio": -2.5,
        "teacher_top": [[["1", -0.1, -0.3]], [["6", None, -0.01]]],
    }


def run() -> RunRecord:
    metrics: list[dict[str, float]] = [
        {"policy_version": 0, "eval/accuracy": 0.57, "eval/accuracy/low": 0.5, "eval/accuracy/high": 0.6}
    ]
    metrics += [
        {
            "policy_version": step,
            "train/loss": 1 / step,
            "train/overlap_ratio": 0.5 + step / 10,
            "train/overlap_ratio/tokens_0_1": 0.6,
            "train/overlap_ratio/tokens_4_8": 0.3,
            "monitor/hedges": float(step),
        }
        for step in (1, 2, 3)
    ]
    return RunRecord(
        name="2026-01-02",
        settings={"name": "lab/compatible", "pipeline": {"steps": 3}, "objective": {"name": "gkd"}},
        metrics=metrics,
        summary=summary(),
        samples={1: [run_sample("first")], 2: [run_sample("between")], 3: [run_sample("last", 1.0)]},
        versions={"torch": "2.13.0"},
    )


def hostile_diagnosis() -> dict[str, Any]:
    """A diagnosis in which every text that a model or a user gives is markup."""
    attacked = token(ATTACK, -0.1, -3.0, teacher_top=[[ATTACK, -1.0, -2.0]])
    hostile = diagnosis()
    hostile["trajectories"] = [{**trajectory(0, 1.0, attacked), "prompt": ATTACK, "prompt_id": ATTACK}]
    hostile["verdict"]["evidence"] = [ATTACK]
    hostile["verdict"]["verdict"] = hostile["verdict"]["unit"] = ATTACK
    hostile["preflight"]["checks"] = [{"name": ATTACK, "status": "warn", "seen": ATTACK, "fix": ATTACK}]
    hostile["probe"]["by_domain"] = {ATTACK: hostile["probe"]["statistics"]}
    hostile["alignment"]["tables"] = {ATTACK: [{ATTACK: ATTACK}]}
    hostile["config"] = {"data": {"system_prompt": ATTACK, ATTACK: ATTACK}, "student": {"model": ATTACK}}
    hostile["versions"] = hostile["machine"] = {ATTACK: ATTACK}
    return hostile
