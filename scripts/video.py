"""A video through the pipeline, compared with the network alone and with the same steps one after the other.

Frames per second of one artefact on one video, in turns; the share is of the same round.

    python scripts/video.py ARTEFACT VIDEO --threads 2
"""

import statistics
import tempfile
import time
from itertools import islice
from pathlib import Path

from measure import parser, write_results

from directdet import Detector
from directdet.infer.draw import draw
from directdet.infer.predict.options import PredictOptions
from directdet.infer.predict.stages import one_opencv_thread
from directdet.infer.predict.video import Video
from directdet.infer.predict.videos import predict_video
from directdet.infer.predict.writers import VideoWriter

SCORE = 0.3


def device_alone(detector: Detector, source: Path, frames: int) -> float:
    """The network on frames that were prepared beforehand, with nothing else running."""
    batches = [detector.prepare([frame.image])[0] for frame in islice(Video(source).frames(), min(frames, 32))]
    for batch in batches[:5]:
        detector.run(batch)
    start = time.perf_counter()
    for number in range(frames):
        detector.run(batches[number % len(batches)])
    return frames / (time.perf_counter() - start)


def one_after_another(detector: Detector, source: Path, frames: int) -> float:
    """Read, prepare, network, draw and write, each frame by itself."""
    with tempfile.TemporaryDirectory() as folder, one_opencv_thread(detector):
        video, writer = Video(source), None
        start = time.perf_counter()
        for frame in islice(video.frames(), frames):
            found = detector(frame.image).above(SCORE)
            crops = found.mask_crops()
            found.to_coco(frame.number, detector.category_ids, crops)
            picture = draw(frame.image, found, detector.classes, crops=crops)
            writer = writer or VideoWriter(Path(folder) / "video.mp4", video.rate, picture.shape[:2])
            writer.write(picture)
        seconds = time.perf_counter() - start
        if writer is not None:
            writer.finish()
    return frames / seconds


def pipelined(detector: Detector, source: Path, frames: int) -> float:
    """What `directdet infer` does."""
    with tempfile.TemporaryDirectory() as folder:
        options = PredictOptions(score=SCORE)
        return predict_video(detector, Video(source), folder, options, limit=frames, progress=False).fps


def main() -> None:
    options = parser(__doc__)
    options.add_argument("model", type=Path)
    options.add_argument("video", type=Path)
    options.add_argument("--frames", type=int, default=300)
    options.add_argument("--runtime", default="auto")
    options.add_argument("--device", default="cpu")
    options.add_argument("--precision")
    given = options.parse_args()
    detector = Detector(given.model, given.runtime, given.device, given.threads, given.precision)
    frames = min(given.frames, Video(given.video).count or given.frames)
    cells = (device_alone, one_after_another, pipelined)
    rounds = [{run.__name__: run(detector, given.video, frames) for run in cells} for _ in range(given.rounds)]
    rows = {}
    for name in (run.__name__ for run in cells):
        shares = [turn[name] / turn["device_alone"] for turn in rounds]
        rows[name] = {"fps": statistics.median(turn[name] for turn in rounds), "share": statistics.median(shares)}
        rows[name]["shares"] = shares
        print(
            f"{name.replace('_', ' '):20s} {rows[name]['fps']:8.1f} fps   {rows[name]['share']:.0%} of the device alone"
        )
    settings = {"model": detector.describe(), "video": given.video.name, "frames": frames, "rounds": given.rounds}
    name = f"video_{given.video.stem}_{detector.info['device']}"
    print(write_results(name, settings, rows, given.results))


if __name__ == "__main__":
    main()
