"""A server in a process of its own, over real connections: what it answers, what it refuses, and how it ends."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import tomllib
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from test_infer_exif import photo
from tiny_artefact import write_artefact

from directdet import Detector
from directdet.infer.runtimes.load import load
from directdet.serve.form import SHOWN, form_page

for library in ("fastapi", "uvicorn", "python_multipart"):
    pytest.importorskip(library, reason=f"{library} is not installed (the extras `serve` and `test` have it)")

MOST_BYTES, MOST_PIXELS = 200_000, 250_000


@contextmanager
def server(artefact, *options):
    """A running server; its port and its process."""
    command = [sys.executable, "-m", "directdet", "serve", str(artefact), "--port", "0", "--device", "cpu", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        assert "http://127.0.0.1:" in line, line + process.stderr.read()
        yield int(line.rsplit(":", 1)[1]), process
    finally:
        process.kill()
        process.communicate()


def ask(port, method, path, body=None, headers=None):
    """(status, headers, body) of a request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def counters(port):
    text = ask(port, "GET", "/metrics")[2].decode()
    return {name: float(value) for name, value in re.findall(r"^(directdet_\S+) (\S+)$", text, re.MULTILINE)}


def form(content, name="file"):
    """(body, headers) of a form with one file."""
    edge = "----edge"
    head = f'--{edge}\r\nContent-Disposition: form-data; name="{name}"; filename="a.png"\r\n\r\n'
    body = head.encode() + content + f"\r\n--{edge}--\r\n".encode()
    return body, {"Content-Type": f"multipart/form-data; boundary={edge}"}


def picture(level=None, size=(192, 256)):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8) if level is None else level
    return cv2.imencode(".png", np.full((*size, 3), pixels, np.uint8))[1].tobytes()


def bomb():
    """A PNG of a few bytes that says that it has a thousand million pixels."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def artefact(tmp_path_factory):
    """Its scores follow the picture, so that every answer tells which picture it is of."""
    return write_artefact(tmp_path_factory.mktemp("serve") / "artefact", "batch", batches=(1, 4, 8), factor=0.02)


@pytest.fixture(scope="module")
def port(artefact):
    limits = ("--max-bytes", str(MOST_BYTES), "--max-pixels", str(MOST_PIXELS), "--score", "0")
    with server(artefact, *limits) as (number, _):
        yield number


def test_detections_are_those_of_a_detector(artefact, port):
    content = picture()
    status, _, body = ask(port, "POST", "/detect?masks=true", content)
    told, expected = (
        json.loads(body),
        Detector(artefact, device="cpu")(cv2.imdecode(np.frombuffer(content, np.uint8), 1)),
    )
    assert status == 200 and (told["height"], told["width"]) == (192, 256)
    rows = told["detections"]
    assert [row["class"] for row in rows] == expected.names and len(rows) == 2
    np.testing.assert_allclose([row["score"] for row in rows], expected.scores, rtol=1e-5)
    np.testing.assert_allclose([row["box"] for row in rows], expected.boxes, rtol=1e-5)
    for row, mask in zip(rows, expected.full_masks(), strict=True):
        assert np.array_equal(coco_mask.decode(row["mask"]).astype(bool), mask)
    assert ask(port, "POST", "/detect", *form(content))[2] == ask(port, "POST", "/detect", content)[2]
    for query, count in (("classes=dog", 1), ("classes=dog,person", 2), ("score=1", 0)):
        assert len(json.loads(ask(port, "POST", f"/detect?{query}", content)[2])["detections"]) == count


def test_the_score_that_the_artefact_suggests_is_the_default(tmp_path):
    artefact = write_artefact(tmp_path / "artefact")
    scores = Detector(artefact, device="cpu")(np.zeros((192, 256, 3), np.uint8)).scores
    meta = json.loads((artefact / "meta.json").read_text())
    meta["suggested_score"] = {"score": float(scores[:2].mean())}
    (artefact / "meta.json").write_text(json.dumps(meta))
    with server(artefact) as (number, _):
        for query, count in (("", 1), ("?score=0", len(scores))):
            assert len(json.loads(ask(number, "POST", f"/detect{query}", picture())[2])["detections"]) == count


def test_each_class_is_kept_from_the_score_that_the_artefact_suggests(tmp_path):
    """A person of 0.9 and a dog of 0.6, for whom the artefact says 0.95 and 0.5."""
    artefact = write_artefact(tmp_path / "artefact")
    meta = json.loads((artefact / "meta.json").read_text())
    meta["suggested_score"] = {"score": 0.3, "per_class": {"person": 0.95, "dog": 0.5}}
    (artefact / "meta.json").write_text(json.dumps(meta))
    content = picture()
    image = cv2.imdecode(np.frombuffer(content, np.uint8), 1)
    with server(artefact) as (number, _):
        for query, kept in (
            ("", ["dog"]),
            ("?classes=person", []),
            ("?score=0.7", ["person"]),
            ("?score=0", ["person", "dog"]),
        ):
            told = json.loads(ask(number, "POST", f"/detect{query}", content)[2])["detections"]
            assert [one["class"] for one in told] == kept
        drawn = cv2.imdecode(np.frombuffer(ask(number, "POST", "/draw", content)[2], np.uint8), 1).astype(int)
        expected = Detector(artefact, device="cpu")(image, classes=["dog"]).draw(image)
        assert np.abs(drawn - expected).mean() < np.abs(drawn - image).mean()
        assert counters(number)["directdet_detections_total"] == 1 + 0 + 1 + 2 + 1
        page = ask(number, "GET", "/")[2].decode()
        assert "scores of at least 0.95 (person), 0.3 (traffic light), 0.5 (dog); another with ?score=" in page
    with server(artefact, "--score", "0.7") as (number, _):
        told = json.loads(ask(number, "POST", "/detect", content)[2])["detections"]
        assert [one["class"] for one in told] == ["person"]
        assert "scores of at least 0.7; another" in ask(number, "GET", "/")[2].decode()


@pytest.mark.parametrize("upload", [lambda content: (content,), form])
def test_a_drawn_picture(artefact, port, upload):
    content = picture()
    status, headers, body = ask(port, "POST", "/draw?classes=dog", *upload(content))
    assert status == 200 and headers["content-type"] == "image/jpeg"
    image = cv2.imdecode(np.frombuffer(content, np.uint8), 1)
    expected = Detector(artefact, device="cpu")(image, classes=["dog"]).draw(image)
    drawn = cv2.imdecode(np.frombuffer(body, np.uint8), 1).astype(int)
    assert np.abs(drawn - expected).mean() < np.abs(drawn - image).mean()


def test_a_photo_is_turned(port):
    told = json.loads(ask(port, "POST", "/detect", photo("JPEG", 6))[2])
    assert (told["width"], told["height"]) == (50, 70)


REFUSED = {
    "nothing": (400, "", b"", "no picture"),
    "no picture": (400, "", b"hello", "not a readable image"),
    "cut off": (400, "", picture()[:-40], "truncated or damaged"),
    "a form without a file": (400, "", form(b"")[0], "no picture"),
    "too many bytes": (413, "", bytes(MOST_BYTES + 1), f"larger than {MOST_BYTES} bytes"),
    "too many pixels": (413, "", picture(0, (501, 500)), "500 x 501 pixels"),
    "a bomb": (413, "", bomb(), "40000 x 40000 pixels"),
    "a class": (422, "?classes=dig", picture(), "did you mean 'dog'"),
    "a score": (422, "?score=2", picture(), ""),
}


@pytest.mark.parametrize("status,query,body,words", REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("path", ["/detect", "/draw"])
def test_what_is_refused_and_why(port, path, status, query, body, words):
    headers = form(b"")[1] if body == form(b"")[0] else None
    got, _, answer = ask(port, "POST", path + query, body, headers)
    assert got == status and words in json.loads(answer).get("error", "")
    assert ask(port, "POST", "/detect", picture())[0] == 200  # and it goes on


@pytest.mark.parametrize("as_form", [False, True])
def test_an_upload_without_a_length_ends_at_the_limit(port, as_form):
    """Sent in pieces, whose sum no header tells."""
    sent = 0

    def pieces():
        nonlocal sent
        if as_form:
            yield form(b"")[0].split(b"\r\n--")[0] + b"\r\n\r\n"
        for _ in range(20 * MOST_BYTES // 10_000):
            sent += 10_000
            yield bytes(10_000)

    try:
        status = ask(port, "POST", "/detect", pieces(), form(b"")[1] if as_form else None)[0]
    except (BrokenPipeError, ConnectionResetError):  # it closed while more was being sent
        status = 413
    assert status == 413
    assert ask(port, "GET", "/health")[0] == 200


def test_the_form_obeys_no_name(artefact):
    detector = load(artefact, device="cpu")
    detector.classes = ("<script>alert(1)</script>", "\ud800 half", "\u202egnirts", *(f"c{n}" for n in range(SHOWN)))
    page = form_page(detector, 0.3)
    assert "\\ud800 half" in page.encode().decode() and "\u202e" not in page  # what UTF-8 cannot write is an escape
    assert "<script" not in page and "&lt;script&gt;" in page and "c26 and 3 more" in page
    detector.classes = detector.classes[:3]
    page = form_page(detector, (0.25, 0.5, 0.75))
    assert "0.25 (&lt;script&gt;" in page and "<script" not in page and "\u202e" not in page and page.encode()


def test_the_name_of_a_class_may_be_what_utf_8_cannot_write(tmp_path):
    artefact, odd = write_artefact(tmp_path / "artefact"), "half \ud800 ä"
    meta = json.loads((artefact / "meta.json").read_text())
    meta["classes"][0] = odd
    (artefact / "meta.json").write_text(json.dumps(meta))
    with server(artefact) as (number, _):
        answers = [ask(number, *request) for request in (("GET", "/health"), ("POST", "/detect?score=0", picture()))]
        refused = ask(number, "POST", "/detect?classes=%ED%A0%80", picture())
        assert [status for status, _, _ in (*answers, refused)] == [200, 200, 422], (answers, refused)
        assert json.loads(answers[0][2])["classes"][0] == odd
        assert odd in {found["class"] for found in json.loads(answers[1][2])["detections"]}
        assert ask(number, "GET", "/")[0] == 200 and ask(number, "POST", "/draw?score=0", picture())[0] == 200


def test_health_metrics_and_the_form(port):
    status, _, body = ask(port, "GET", "/health")
    assert status == 200 and json.loads(body)["status"] == "ok" and json.loads(body)["runtime"] == "onnxruntime"
    before = counters(port)
    assert ask(port, "POST", "/detect", picture())[0] == 200 and ask(port, "POST", "/detect", b"x")[0] == 400
    after = counters(port)
    for name, more in (
        ('requests_total{path="/detect",status="200"}', 1),
        ("pictures_total", 1),
        ("detections_total", 2),
    ):
        assert after[f"directdet_{name}"] - before.get(f"directdet_{name}", 0) == more
    assert after["directdet_request_seconds_count"] - before["directdet_request_seconds_count"] == 2
    assert after['directdet_request_seconds_bucket{le="+Inf"}'] == after["directdet_request_seconds_count"]
    assert after["directdet_requests_now"] == 0
    page = ask(port, "GET", "/")[2].decode()
    assert 'enctype="multipart/form-data"' in page and "http://" not in page and "https://" not in page
    assert "person, traffic light, dog" in page and "scores of at least 0;" in page


def test_concurrent_requests_share_batches_and_get_their_own_answers(artefact, port):
    detector = Detector(artefact, device="cpu")
    expected = [float(detector(np.full((96, 128, 3), level, np.uint8)).scores[0]) for level in range(0, 256, 4)]
    assert len(set(expected)) == 64
    before = counters(port)
    with ThreadPoolExecutor(64) as pool:
        answers = list(
            pool.map(lambda level: ask(port, "POST", "/detect", picture(level, (96, 128))), range(0, 256, 4))
        )
    assert [status for status, _, _ in answers] == [200] * 64
    scores = [json.loads(body)["detections"][0]["score"] for _, _, body in answers]
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    after = counters(port)
    assert after["directdet_pictures_total"] - before["directdet_pictures_total"] == 64
    assert after["directdet_batches_total"] - before["directdet_batches_total"] < 64


def stalled(port, length=1000):
    """A connection that has begun an upload and does not go on."""
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(f"POST /detect HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\nab".encode())
    return connection


def wait_until(met, seconds=30):
    until = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_full_server_refuses_and_recovers(artefact):
    with server(artefact, "--queue", "2") as (port, _):
        connections = [stalled(port) for _ in range(2)]
        wait_until(lambda: counters(port)["directdet_requests_now"] == 2)
        status, headers, body = ask(port, "POST", "/detect", picture())
        assert status == 503 and headers["retry-after"] == "1" and "as many as may" in json.loads(body)["error"]
        assert ask(port, "GET", "/health")[0] == 200
        for connection in connections:  # clients that go leave their places
            connection.close()
        wait_until(lambda: counters(port)["directdet_requests_now"] == 0)
        assert ask(port, "POST", "/detect", picture())[0] == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_answers_what_was_begun(artefact, number):
    content = picture()
    with server(artefact) as (port, process):
        connection = stalled(port, len(content))
        connection.settimeout(30)
        wait_until(lambda: counters(port)["directdet_requests_now"] == 1)
        process.send_signal(number)
        time.sleep(0.5)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        connection.sendall(content[2:])
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert answer.status == 400 and b"not a readable image" in answer.read()  # it began with "ab": no PNG, but read
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0 and "stopped: every request" in out and err == ""


def test_an_address_that_is_taken_is_one_line(artefact):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "directdet", "serve", str(artefact), "--port", port]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert f"127.0.0.1:{port}: cannot listen there: Address already in use; give another" in done.stderr


def test_the_container_has_what_a_server_needs():
    """The lines of its requirements are those of a machine without torch and of the extra, OpenCV without windows."""
    root = Path(__file__).resolve().parents[2]

    def lines(name):
        return {line for line in (root / name).read_text().splitlines() if line and not line.startswith("#")}

    extra = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]["serve"]
    deploy = {line.replace("opencv-python>", "opencv-python-headless>") for line in lines("requirements-deploy.txt")}
    assert lines("requirements-serve.txt") == deploy | set(extra)
    container = (root / "Dockerfile").read_text()
    copied = re.findall(r"^COPY (.+) \./$", container, re.MULTILINE)[0].split()
    let_in = {line[1:] for line in (root / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {*copied, "src"} == let_in and all((root / name).exists() for name in let_in)


def test_an_upload_that_stalls_is_ended(artefact):
    code = (
        "import sys\nfrom directdet import Detector\nfrom directdet.serve.options import ServeOptions\n"
        "from directdet.serve.run import serve\n"
        "serve(Detector(sys.argv[1], device='cpu'), ServeOptions(upload_seconds=0.5), '127.0.0.1', 0,\n"
        "      lambda line: print(line, flush=True))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(artefact)], stdout=subprocess.PIPE, text=True)
    try:
        port = int(process.stdout.readline().rsplit(":", 1)[1])
        connection = stalled(port)
        connection.settimeout(30)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert answer.status == 408 and b"longer than 0.5 seconds" in answer.read()
        assert counters(port)["directdet_requests_now"] == 0
    finally:
        process.kill()
        process.communicate()
