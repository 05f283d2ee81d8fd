"""How many CPU cores this process may use; a container or taskset often gives it fewer than the machine has."""

import os


def usable_cores() -> int:
    """At least 1."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1
