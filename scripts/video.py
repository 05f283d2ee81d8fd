"""A video through the pipeline, compared with the network alone and with the same steps one after the other.

Frames per second of one artefact on one video, in turns, each in its own process; the share is of the same round.
`cpu_ms` is the processor time of a frame, which other work on the machine changes little. With --before, the pipeline
of another checkout takes its turns, too; with --streams, so many copies of the video share the network's batches.

    python scripts/video.py ARTEFACT VIDEO --threads 2
"""

import json
import statistics
import tempfile
import time
from itertools import islice
from pathlib import Path

from measure import in_process, parser, write_results

from directdet import Detector
from directdet.infer.draw import draw
from directdet.infer.predict.options import PredictOptions
from directdet.infer.predict.stages import one_opencv_thread
from directdet.infer.predict.video import Video
from directdet.infer.predict.videos import predict_video

SCORE = 0.3


class Clock:
    """Wall and processor time from now on."""

    def __init__(self) -> None:
        self.start, self.cpu = time.perf_counter(), time.process_time()

    def figures(self, frames: int) -> dict[str, float]:
        seconds, cpu = time.perf_counter() - self.start, time.process_time() - self.cpu
        return {"fps": frames / seconds, "cpu_ms": 1000 * cpu / frames}


def device_alone(detector: Detector, source: Path, frames: int, streams: int = 1) -> dict[str, float]:
    """The network on frames that were prepared beforehand, with nothing else running."""
    pictures = [frame.image for frame in islice(Video(source).frames(), min(frames, 32))]
    batches = [detector.prepare([picture] * streams)[0] for picture in pictures]
    for batch in batches[:5]:
        detector.run(batch)
    clock = Clock()
    for number in range(frames):
        detector.run(batches[number % len(batches)])
    return clock.figures(frames * streams)


def one_after_another(detector: Detector, source: Path, frames: int) -> dict[str, float]:
    """Read, prepare, network, draw and write, each frame by itself."""
    from directdet.infer.predict.video_io.writer import VideoWriter

    with tempfile.TemporaryDirectory() as folder, one_opencv_thread(detector):
        video, writer = Video(source), None
        clock = Clock()
        for frame in islice(video.frames(), frames):
            found = detector(frame.image).above(SCORE)
            crops = found.mask_crops()
            found.to_coco(frame.number, detector.category_ids, crops)
            picture = draw(frame.image, found, detector.classes, crops=crops)
            writer = writer or VideoWriter(Path(folder) / "video.mp4", video.rate, picture.shape[:2])
            writer.write(picture)
        figures = clock.figures(frames)
        if writer is not None:
            writer.finish()
    return figures


def pipelined(detector: Detector, source: Path, frames: int) -> dict[str, float]:
    """What `directdet infer` does; the first five frames of a run of their own are not counted."""
    with tempfile.TemporaryDirectory() as folder:
        options = PredictOptions(score=SCORE)
        predict_video(detector, Video(source), folder, options, limit=5, progress=False)
        clock = Clock()
        fps = predict_video(detector, Video(source), folder, options, limit=frames, progress=False).fps
        return {**clock.figures(frames), "fps": fps}


def pipelined_opencv(detector: Detector, source: Path, frames: int) -> dict[str, float]:
    """The same without PyAV."""
    from directdet.infer.predict.video_io import capture

    capture.has_pyav = lambda: False
    return pipelined(detector, source, frames)


def together(detector: Detector, source: Path, frames: int, streams: int) -> dict[str, float]:
    """Several copies of the video at once."""
    from directdet.infer.predict.videos import predict_videos

    with tempfile.TemporaryDirectory() as folder:
        copies = [Path(folder) / f"{number}{source.suffix}" for number in range(streams)]
        for copy in copies:
            copy.symlink_to(source.absolute())
        options = PredictOptions(score=SCORE, batch=streams)
        videos = [Video(copy) for copy in copies]
        clock = Clock()
        done = predict_videos(detector, videos, Path(folder) / "out", options, limit=frames, progress=False)
        return {**clock.figures(frames * streams), "fps": done[0].fps}


CELLS = {run.__name__: run for run in (device_alone, one_after_another, pipelined, pipelined_opencv)}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("model", type=Path)
    options.add_argument("video", type=Path)
    options.add_argument("--frames", type=int, default=300)
    options.add_argument("--runtime", default="auto")
    options.add_argument("--device", default="cpu")
    options.add_argument("--precision")
    options.add_argument("--streams", type=int, default=0, help="also so many copies in common batches")
    options.add_argument("--label", default="", help="a word for the network in the name of the results")
    options.add_argument("--before", type=Path, metavar="DIR", help="another checkout of this repository")
    given = options.parse_args()
    detector = Detector(given.model, given.runtime, given.device, given.threads, given.precision)
    frames = min(given.frames, Video(given.video).count or given.frames)
    if given.cell:
        run = {"device_batch": device_alone, "together": together}.get(given.cell)
        more = () if run is None else (given.streams,)
        print(json.dumps((run or CELLS[given.cell])(detector, given.video, frames, *more)))
        return
    passed = [given.model, given.video, "--frames", frames, "--runtime", given.runtime, "--device", given.device]
    passed += ["--threads", given.threads, "--streams", given.streams]
    passed += ["--precision", given.precision] if given.precision else []
    # What each is a share of.
    cells = dict.fromkeys(CELLS, "device_alone")
    cells |= {"before": "device_alone"} if given.before else {}
    cells |= {"device_batch": "device_batch", "together": "device_batch"} if given.streams else {}
    rounds = []
    for _ in range(given.rounds):
        turn = {}
        for name in cells:
            source = given.before / "src" if name == "before" else None
            cell = "pipelined" if name == "before" else name
            turn[name] = in_process(__file__, cell, *map(str, passed), source=source)
        rounds.append(turn)
    rows = {}
    for name, whole in cells.items():
        rows[name] = {key: statistics.median(turn[name][key] for turn in rounds) for key in ("fps", "cpu_ms")}
        for key, one, other in (("share", name, whole), ("cpu_share", whole, name)):
            what = "fps" if key == "share" else "cpu_ms"
            rows[name][f"{key}s"] = [turn[one][what] / turn[other][what] for turn in rounds]
            rows[name][key] = statistics.median(rows[name][f"{key}s"])
        row, title = rows[name], name.replace("_", " ")
        print(f"{title:20s} {row['fps']:8.1f} fps   {row['share']:.0%} of the device alone", end="")
        print(f"   {row['cpu_ms']:8.2f} ms of a processor a frame, {row['cpu_share']:.0%} of that the device alone's")
    settings = {"model": detector.describe(), "video": given.video.name, "frames": frames, "rounds": given.rounds}
    settings["streams"] = given.streams
    words = ("video", given.video.stem, given.label, detector.info["device"])
    print(write_results("_".join(word for word in words if word), settings, rows, given.results))


if __name__ == "__main__":
    main()
