"""Clients that ask a server of `directdet serve` for detections all the time: is anything lost, how long does it take?

    python scripts/serve_load.py http://127.0.0.1:8000 PICTURE... [--clients 64] [--seconds 120] [--pid PID]

Each client keeps one connection and sends the next picture when it has the answer to the one before. Every answer is
compared with the first one for the same picture, as every picture has the same detections each time. `--pid` is the
server's process: its memory is read each second. Exit code 1 if a request was not answered, or not as before.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np


@dataclass
class Tally:
    """What all clients saw."""

    seconds: list[float] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    answers: dict[int, list[tuple[str, float]]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, number: int, outcome: str, body: bytes, seconds: float) -> None:
        """Enter one request for picture `number`."""
        if outcome == "200":
            found = [(row["class"], row["score"]) for row in json.loads(body)["detections"]]
            with self.lock:
                outcome = "200" if alike(self.answers.setdefault(number, found), found) else "another answer"
        with self.lock:
            self.outcomes[outcome] += 1
            self.seconds.append(seconds)


def alike(one: list[tuple[str, float]], other: list[tuple[str, float]]) -> bool:
    """The same classes, and scores to 1e-4: a batch of another size may add up in another order."""
    names = [name for name, _ in one] == [name for name, _ in other]
    return names and all(abs(a - b) <= 1e-4 for (_, a), (_, b) in zip(one, other, strict=True))


def client(address: tuple[str, int], pictures: list[bytes], first: int, until: float, tally: Tally) -> None:
    """One after the other, until the time is over."""
    connection = http.client.HTTPConnection(*address, timeout=120)
    number = first
    while time.monotonic() < until:
        number = (number + 1) % len(pictures)
        start = time.perf_counter()
        try:
            connection.request("POST", "/detect", pictures[number])
            answer = connection.getresponse()
            body, outcome = answer.read(), str(answer.status)
        except OSError as error:
            body, outcome = b"", type(error).__name__
            connection.close()
        tally.add(number, outcome, body, time.perf_counter() - start)
    connection.close()


def memory(pid: int) -> float:
    """MiB that a process holds in memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description="Load a server, and measure it.")
    parser.add_argument("url")
    parser.add_argument("pictures", nargs="+", type=Path)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--pid", type=int)
    given = parser.parse_args()
    url, tally = urlsplit(given.url), Tally()
    address = url.hostname or "127.0.0.1", url.port or 80
    pictures = [path.read_bytes() for path in given.pictures]
    start = time.monotonic()
    threads = [
        threading.Thread(target=client, args=(address, pictures, number, start + given.seconds, tally))
        for number in range(given.clients)
    ]
    for thread in threads:
        thread.start()
    held = []
    while any(thread.is_alive() for thread in threads):
        if given.pid is not None:
            held.append(memory(given.pid))
        time.sleep(1)
    wall, good = time.monotonic() - start, tally.outcomes["200"]
    print(f"{given.clients} clients, {wall:.0f} s: {tally.outcomes.total()} requests, {good} answered alike, ", end="")
    print(f"{tally.outcomes.total() - good} not ({dict(tally.outcomes)}); {good / wall:.1f} a second")
    p50, p99 = np.percentile(tally.seconds, [50, 99])
    found = [len(rows) for rows in tally.answers.values()]
    print(f"{len(found)} pictures, {np.mean(found) if found else 0:.1f} detections in each")
    print(f"seconds: p50 {p50:.3f}, p99 {p99:.3f}, most {max(tally.seconds):.3f}")
    if len(held) >= 12:
        parts = [np.mean(part) for part in np.array_split(np.array(held), 4)]
        print("memory, MiB, mean of each quarter:", ", ".join(f"{part:.0f}" for part in parts))
    return int(good != tally.outcomes.total())


if __name__ == "__main__":
    sys.exit(main())
