"""The machine that a measurement was taken on: processor, GPU and library versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

from directdet.common.cores import usable_cores
from directdet.common.errors import UserError
from directdet.infer.runtimes.cuda_driver import find_gpu

_GPU_FIELDS = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit"
_LIBRARIES = ("directdet", "numpy", "opencv-python", "opencv-python-headless", "pycocotools")


def hardware() -> dict[str, Any]:
    """Processor, cores that this process may use, memory, and GPU (None without one)."""
    cores = usable_cores()
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "cores_usable": cores,
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "gpu": _gpu(),
    }


def peak_memory_mib() -> float | None:
    """Peak resident memory of this process so far, in MiB; None if the system does not report it.

    On Linux, VmHWM is preferred: the value of getrusage starts from that of the parent process.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except (OSError, ValueError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / 2**20 if platform.system() == "Darwin" else used / 1024


def gpu_memory_mib(index: int = 0) -> float | None:
    """GPU memory used by all processes, in MiB, as reported by nvidia-smi; None without it."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [name.strip() for name in visible.split(",")] if visible else []
    chosen = names[index] if index < len(names) else str(index)
    found = _nvidia_smi("memory.used", chosen, "--format=csv,noheader,nounits")
    try:
        return float(found[0]) if found else None
    except ValueError:
        return None


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries other than the runtimes."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _cpu_name() -> str:
    """The processor's model name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith(("model name", "hardware")):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, OSError, ValueError):
        return None


def _gpu() -> dict[str, str] | None:
    """Name, compute capability and, if nvidia-smi reports them, driver, clocks and power limit."""
    driver = find_gpu()
    if driver is None:
        return None
    try:
        found = {
            "name": driver.name,
            "compute_capability": driver.compute_capability,
            "cuda_of_driver": driver.cuda_version,
        }
    except UserError:
        return None
    return found | dict(
        zip(_GPU_FIELDS.split(","), _nvidia_smi(_GPU_FIELDS, "0", "--format=csv,noheader"), strict=False)
    )


def _nvidia_smi(fields: str, index: str, form: str) -> list[str]:
    """Values of the fields of one GPU; empty if nvidia-smi is missing or fails."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-gpu={fields}", form, f"--id={index}"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return []
    return [value.strip() for value in output.split(",")]
