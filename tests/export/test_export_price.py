"""Canvases from the user's pictures, the frontier of AP against milliseconds, and the choice within limits."""

import io
import json
from itertools import product

import pytest
from rich.console import Console

from directdet.common.errors import UserError
from directdet.export.price import Choice, Price, canvases, choose, fewer_proposals, frontier, price_table
from directdet.infer.preprocess import Preprocess

SMALL = Preprocess((320, 448), fixed=False)


def price(ms: float, ap: float, number: int = 100) -> Price:
    return Price(Choice((320, 448), number), ap, ap / 2, ms, 50)


def padding(size: tuple[int, int], shape: tuple[int, int]) -> float:
    """Share of a canvas that a picture does not cover."""
    place = Preprocess(size).place(*shape)
    return 1 - place.height * place.width / (size[0] * size[1])


@pytest.mark.parametrize("shape", [(480, 640), (640, 480), (1080, 1920), (300, 310), (768, 576)])
def test_canvases_fit_the_pictures(shape):
    found = canvases(SMALL, [shape] * 8)
    assert all(side % 32 == 0 and side > 0 for size in found for side in size)
    assert len(found) == len(set(found)) and found == sorted(found, key=lambda size: -size[0] * size[1])
    place = SMALL.place(*shape)
    largest = min(found, key=lambda size: abs(size[0] - place.height) + abs(size[1] - place.width))
    assert abs(largest[0] - place.height) <= 32 and abs(largest[1] - place.width) <= 32
    assert padding(largest, shape) < 0.12
    assert min(size[0] * size[1] for size in found) < 0.65 * largest[0] * largest[1]
    assert any(height == width for height, width in found)


def test_most_pictures_decide_not_the_odd_one():
    assert canvases(SMALL, [(480, 640)] * 9 + [(2000, 100)]) == canvases(SMALL, [(480, 640)] * 10)
    both = canvases(SMALL, [(480, 640)] * 10 + [(640, 480)] * 10)
    assert all(height == width for height, width in both)  # upright and lying ones alike


def test_a_warping_model_takes_its_own_size():
    assert canvases(Preprocess((300, 300), warp=True), [(480, 640)]) == [(300, 300)]


def test_proposals():
    assert fewer_proposals(None) == [None]
    assert fewer_proposals(1000) == [1000, 300, 100, 50]
    assert fewer_proposals(100) == [100, 50]
    assert fewer_proposals(20) == [20]


def test_frontier_is_what_nothing_beats():
    """Against the definition: no other point is at least as good in both, and better in one."""
    prices = [price(ms, ap, number) for number, (ms, ap) in enumerate(product((10, 20, 30, 40), (0.2, 0.4, 0.5)))]
    prices += [price(15, 0.3), price(25, 0.45), price(5, 0.1)]

    def beaten(one: Price) -> bool:
        return any(
            other.ms <= one.ms and other.ap >= one.ap and (other.ms < one.ms or other.ap > one.ap) for other in prices
        )

    assert frontier(prices) == sorted((one for one in prices if not beaten(one)), key=lambda one: one.ms)
    assert frontier([]) == []


def test_choice_within_limits():
    prices = [price(10, 0.3), price(20, 0.45), price(30, 0.44), price(40, 0.5)]
    assert choose(prices, 35, None).ms == 20  # 30 ms would be allowed, but finds less
    assert choose(prices, None, 0.44).ms == 20
    assert choose(prices, None, 0.46).ms == 40
    assert choose(prices, 45, 0.2).ap == 0.5
    assert choose(prices, 20, 0.45).ms == 20


@pytest.mark.parametrize(
    ("max_ms", "min_ap", "says"),
    [
        (5, None, "--max-ms 5: no choice is within it; the fastest is 320x448, 100 proposals with 10.0 ms and AP 30.0"),
        (None, 0.6, "--min-ap 60: .* the best 320x448, 100 proposals with 40.0 ms and AP 50.0"),
        (15, 0.4, "--max-ms 15 with --min-ap 40: no choice"),
    ],
)
def test_nothing_within_limits(max_ms, min_ap, says):
    with pytest.raises(UserError, match=says):
        choose([price(10, 0.3), price(40, 0.5)], max_ms, min_ap)


def test_table_marks_what_is_taken():
    prices = [price(10, 0.3), price(30, 0.25), price(20, 0.45)]
    console = Console(file=io.StringIO(), width=80)
    console.print(price_table(prices, prices[2], "demo"))
    lines = [line.split() for line in console.file.getvalue().splitlines() if "320x448" in line]
    assert [line[2] for line in lines] == ["10.0", "20.0", "30.0"]
    assert [line[5:] for line in lines] == [["*"], ["*", "taken"], []]


# ---- Measured


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A checkpoint of a slim Mask R-CNN, and pictures of 64x96."""
    from export_helpers import conditioned_checkpoint

    from directdet.data.synthetic import make_synthetic

    folder = tmp_path_factory.mktemp("price")
    conditioned_checkpoint(folder / "model.pt")
    make_synthetic(folder / "data", images_train=2, images_val=4, size=(64, 96))
    return folder


def test_export_takes_what_is_fastest(run, monkeypatch, capsys):
    """With stand-ins for the measurements: what is asked for decides, and the artefact is of that size."""
    from directdet.export import price_search
    from directdet.front.cli import main

    asked = []

    def measured(trained, source, options, choice, dataset, ap_images, work):
        asked.append(choice)
        area = choice.size[0] * choice.size[1]
        return Price(choice, min(0.5, area / 20_000), None, area / 1000 + (choice.proposals or 0) / 10, 4)

    monkeypatch.setattr(price_search, "_price", measured)
    out = run / "artefact"
    arguments = ["export", str(run / "model.pt"), "--out", str(out), "--data", str(run / "data"), "--ap-images", "2"]
    assert main([*arguments, "--min-ap", "48"]) in (0, 1)  # a network that was never trained may fail by AP
    printed = capsys.readouterr().out
    meta = json.loads((out / "meta.json").read_text())
    prices = meta["prices"]
    taken = prices[0]["choice"]
    assert meta["preprocess"]["size"] == taken["size"] and "taken" in printed
    assert meta["input"]["shape"][1:3] == taken["size"]
    enough = [price for price in prices if price["ap"] >= 0.48]
    assert prices[0]["ms"] == min(price["ms"] for price in enough) and len(enough) < len(prices)
    assert len(asked) == len(set(asked)) == len(prices) > 2


@pytest.mark.slow
def test_prices_are_measured(run, tmp_path):
    """Each choice is exported and run: fewer proposals and smaller canvases are what was exported."""
    from directdet.data.dataset import load_dataset
    from directdet.export.options import ExportOptions
    from directdet.export.price_search import measure_prices
    from directdet.infer.runtimes.torch_runtime import load_torch

    trained = load_torch(run / "model.pt", device="cpu")
    config = trained.backend.model.config
    said = []
    options, val = ExportOptions(max_ms=1e6, proposals=8), load_dataset(run / "data", "val")
    prices = measure_prices(trained, run / "model.pt", options, val, 2, tmp_path, said.append)
    assert len(said) == len(prices) >= 2 and {price.choice.proposals for price in prices} == {8}
    assert all(price.ms > 0 and 0 <= price.ap <= 1 and price.images == 2 for price in prices)
    assert trained.backend.model.config == config and not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--max-ms", "10"], "--max-ms: is measured on real pictures; give --data"),
        (["--min-ap", "40"], "--min-ap: is measured on real pictures; give --data"),
        (["--max-ms", "10", "--precision", "int8"], "not with --precision int8"),
        (["--max-ms", "10", "--format", "tensorrt-rtx"], "not for --format tensorrt-rtx"),
        (["--max-ms", "0"], "--max-ms 0.0: give a number above 0"),
        (["--min-ap", "101"], "not in the range"),
    ],
)
def test_limits_that_cannot_be(tmp_path, capsys, arguments, says):
    from directdet.front.cli import main

    assert main(["export", str(tmp_path / "none.pt"), "--out", str(tmp_path / "a"), *arguments]) == 2
    assert says in capsys.readouterr().err
