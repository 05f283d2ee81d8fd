"""The pipeline with stand-ins: order, overlap, dropping, errors, Ctrl-C."""

from __future__ import annotations

import os
import signal
import threading

import cv2
import numpy as np
import pytest

from directdet.common.errors import UserError
from directdet.infer.predict import pipeline
from directdet.infer.predict.pipeline import END, Channel, Latencies, run_pipeline

WAIT = 20  # seconds until a test gives up on another thread


def test_order_is_kept_and_nothing_lost():
    seen = []
    stages = [("double", lambda value: 2 * value), ("text", str)]
    result = run_pipeline(iter(range(200)), stages, seen.append)
    assert seen == [str(2 * value) for value in range(200)]
    assert (result.items, result.dropped, result.interrupted, result.failure) == (200, 0, False, None)
    assert list(result.stages) == ["read", "double", "text", "write"]
    assert {latencies.count for latencies in result.stages.values()} == {200}
    assert result.end_to_end.count == 200 and result.seconds > 0
    result.raise_failure()


def test_an_empty_source():
    result = run_pipeline([], [("stage", str)], lambda value: None)
    assert result.items == 0 and result.failure is None and result.stages["stage"].summary() == {}


def test_stages_overlap():
    """Every stage holds its first item until the one before has begun the next: sequential work would wait forever."""
    second_begun = [threading.Event() for _ in range(4)]

    def stage(number):
        def work(value):
            if value == 1:
                second_begun[number].set()
            if value == 0:
                assert second_begun[number - 1].wait(WAIT), f"stage {number} waits for {number - 1} in vain"
            return value

        return work

    def source():
        yield 0
        second_begun[0].set()
        yield 1

    stages = [("a", stage(1)), ("b", stage(2))]
    result = run_pipeline(source(), stages, stage(3))
    result.raise_failure()
    assert result.items == 2


def test_queues_are_bounded():
    """A source that is far quicker than the network does not fill the memory."""
    read = []
    ahead = []

    def source():
        for number in range(300):
            read.append(number)
            yield number

    def sink(number):
        ahead.append(len(read) - number)

    run_pipeline(source(), [("slow", lambda value: (threading.Event().wait(0.001), value)[1])], sink, depth=2)
    assert len(ahead) == 300 and max(ahead) <= 2 * 2 + 4  # two queues, and what each thread holds


def test_live_the_newest_wins():
    """While the stage holds the first item, all later ones but the last are dropped, and counted."""
    begun, read_all = threading.Event(), threading.Event()

    def source():
        yield 0
        assert begun.wait(WAIT)
        yield from range(1, 50)
        read_all.set()

    def slow(value):
        begun.set()
        assert read_all.wait(WAIT)
        return value

    seen = []
    result = run_pipeline(source(), [("device", slow)], seen.append, live=True)
    result.raise_failure()
    assert seen == [0, 49] and result.dropped == 48


def test_live_items_do_not_wait_in_line():
    """While the last stage works, one item is ready for it, and the one after that is the newest there is."""
    begun, read_all, taken = threading.Event(), threading.Event(), threading.Event()
    prepared = []

    def source():
        yield 0
        assert begun.wait(WAIT)
        for number in range(1, 50):
            yield number
            if number == 1:
                assert taken.wait(WAIT)
        read_all.set()

    def prepare(value):
        prepared.append(value)
        if value == 1:
            taken.set()
        return value

    def device(value):
        begun.set()
        assert read_all.wait(WAIT)
        return value

    seen = []
    result = run_pipeline(source(), [("prepare", prepare), ("device", device)], seen.append, live=True)
    result.raise_failure()
    assert seen == prepared == [0, 1, 49] and result.dropped == 47


@pytest.mark.parametrize("place", ["read", "prepare", "device", "write"])
@pytest.mark.parametrize(
    "error", [UserError("file.mp4: broken"), RuntimeError("out of\n memory"), cv2.error("bad"), OSError("disk")]
)
def test_an_error_anywhere_ends_all_with_one_line(place, error):
    seen = []

    def fail_at(name, value):
        if name == place and value == 5:
            raise error
        return value

    def source():
        for number in range(1000):
            yield fail_at("read", number)

    stages = [(name, lambda value, name=name: fail_at(name, value)) for name in ("prepare", "device")]
    before = set(threading.enumerate())
    result = run_pipeline(source(), stages, lambda value: seen.append(fail_at("write", value)))
    assert seen == [0, 1, 2, 3, 4], "what passed before the error is written, nothing after it"
    with pytest.raises(UserError) as caught:
        result.raise_failure()
    assert "\n" not in str(caught.value)
    if not isinstance(error, UserError):
        assert str(caught.value).startswith(f"{place}: failed at item 6: {type(error).__name__}: ")
    assert not set(threading.enumerate()) - before  # one of an earlier test may have ended meanwhile


def test_a_mistake_in_the_code_keeps_its_traceback():
    result = run_pipeline([1], [("stage", lambda value: value.missing)], lambda value: None)
    with pytest.raises(AttributeError):
        result.raise_failure()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stop_signals_let_the_sink_finish(number):
    """The signal comes while the sink is at an item: it is finished, no other begun, and no thread stays."""
    finished = []
    closed = threading.Event()

    def source():
        try:
            yield from range(10_000)
        finally:
            closed.set()

    def sink(value):
        if value == 3:
            os.kill(os.getpid(), number)
        finished.append(value)

    handler, before = signal.getsignal(number), set(threading.enumerate())
    result = run_pipeline(source(), [("stage", lambda value: value)], sink)
    assert finished == [0, 1, 2, 3] and result.interrupted and closed.is_set()
    assert not set(threading.enumerate()) - before and signal.getsignal(number) is handler
    with pytest.raises(KeyboardInterrupt):
        result.raise_failure()


def test_a_signal_is_heard_while_nothing_arrives(monkeypatch):
    """Nor does a source that hangs keep the run from ending."""
    monkeypatch.setattr(pipeline, "_JOIN_SECONDS", 0.1)
    release = threading.Event()

    def source():
        yield 1
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
        release.wait(WAIT)

    seen = []
    try:
        result = run_pipeline(source(), [], seen.append)
    finally:
        release.set()
    assert seen == [1] and result.interrupted


def test_the_sink_can_end_it():
    seen = []
    result = run_pipeline(iter(range(1000)), [("stage", str)], lambda value: seen.append(value) or len(seen) == 7)
    assert len(seen) == result.items == 7 and not result.interrupted and result.failure is None


def test_channel():
    channel = Channel(2)
    assert channel.get(0.01) is None
    assert channel.put(1) and channel.put(2)
    channel.close()
    assert [channel.get(), channel.get(), channel.get()] == [1, 2, END]
    newest = Channel(1, newest=True)
    assert all(newest.put(value) for value in range(5))
    assert newest.get() == 4 and newest.dropped == 4
    newest.stop()
    assert not newest.put(5) and newest.get() is END


def test_latencies_forget_the_oldest():
    times = Latencies()
    values = np.random.default_rng(0).uniform(0.001, 0.1, 20_000)
    for value in values:
        times.add(value)
    latest = 1000 * values[-16384:]
    summary = times.summary()
    assert times.count == 20_000 and summary["mean_ms"] == pytest.approx(1000 * values.mean())
    for name, share in (("p50_ms", 50), ("p95_ms", 95), ("p99_ms", 99)):
        assert summary[name] == pytest.approx(np.percentile(latest, share), rel=1e-4)
