"""Batches: padding, order, resuming, and errors out of worker processes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from compared import assert_equal_batches, at_epoch

from directdet.common.errors import UserError
from directdet.data.augment.transforms import EdgesTransform, PretrainTransform
from directdet.data.dataset import Dataset, Record, load_dataset
from directdet.data.loader import make_loader
from directdet.data.padding import Padding, target_rows
from directdet.data.pixels.format import RGB
from directdet.data.sampling import Sampling

SQUARE = PretrainTransform(96)
FREE = EdgesTransform(96, 160)


@pytest.fixture(scope="module")
def dataset(synthetic):
    return load_dataset(synthetic, "train")


def test_shapes_types_and_padding(dataset):
    loader = make_loader(dataset, SQUARE, Sampling(4, seed=1))
    assert len(loader) == loader.batches_per_epoch == 3 and loader.images == 12
    for images, targets in loader:
        rows = targets["valid"].shape[1]
        assert rows == 8  # no image has more objects
        assert images.shape == (4, 3, 96, 96) and images.dtype == torch.uint8 and images.is_contiguous()
        expected = {
            "boxes": ((4, rows, 4), torch.float32),
            "labels": ((4, rows), torch.int64),
            "valid": ((4, rows), torch.bool),
            "sizes": ((4, 2), torch.float32),
            "padded": ((4, 2), torch.float32),
            "masks": ((4, rows, 56, 56), torch.uint8),
        }
        assert {key: (tuple(value.shape), value.dtype) for key, value in targets.items()} == expected
        valid = targets["valid"]
        for key in ("boxes", "labels", "masks"):
            assert not targets[key][~valid].any()
        boxes = targets["boxes"][valid]
        assert (boxes[:, 2:] - boxes[:, :2] >= 1).all() and targets["masks"][valid].flatten(1).any(dim=1).all()
        for image, (height, width) in zip(images, targets["sizes"].int().tolist(), strict=True):
            assert (image[:, height:] == torch.tensor(RGB.padding)[:, None, None]).all()
            assert (image[:, :, width:] == torch.tensor(RGB.padding)[:, None, None]).all()


def test_canvas_is_rounded_up_to_the_divisor(dataset):
    for images, targets in make_loader(dataset, FREE, Sampling(3), Padding(divisor=32)):
        height, width = images.shape[2:]
        largest = targets["sizes"].max(dim=0).values.int().tolist()
        assert (height, width) == tuple(-(-side // 32) * 32 for side in largest)
    images, _ = next(iter(make_loader(dataset, PretrainTransform(75), Sampling(3), Padding(divisor=1))))
    assert images.shape[2:] == (75, 75)


def test_every_picture_once_an_epoch_and_another_order_the_next(dataset):
    def order(epoch):
        loader = at_epoch(make_loader(dataset, SQUARE, Sampling(5, seed=2, drop_last=False)), epoch)
        return [index for batch in loader._sampler for _, _, index in batch]

    assert sorted(order(0)) == sorted(order(1)) == list(range(12))
    assert order(0) == order(0) and order(0) != order(1)


def test_resuming_and_workers_change_nothing(dataset):
    whole = list(at_epoch(make_loader(dataset, SQUARE, Sampling(3, seed=5)), 2))
    resumed = at_epoch(make_loader(dataset, SQUARE, Sampling(3, seed=5)), 2, 2)
    assert len(resumed) == 2 and resumed.batches_per_epoch == 4
    assert_equal_batches(whole[2:], resumed)
    workers = make_loader(dataset, SQUARE, Sampling(3, seed=5), workers=2)
    first = list(workers)
    workers.set_epoch(2)  # the same worker processes
    assert_equal_batches(whole, workers)
    assert_equal_batches(first, make_loader(dataset, SQUARE, Sampling(3, seed=5)))
    workers.set_epoch(2, 1)
    next(iter(workers))  # an epoch left unfinished does not leak into the next
    workers.set_epoch(2, 3)
    assert_equal_batches(whole[3:], workers)
    with pytest.raises(ValueError, match="there are 4"):
        workers.set_epoch(0, 5)


def test_epochs_differ_in_augmentation(dataset):
    seen = []
    for epoch in (0, 1):
        loader = at_epoch(make_loader(dataset, SQUARE, Sampling(12)), epoch)
        _, targets = next(iter(loader))
        seen.append(sorted(targets["sizes"].sum(dim=1).tolist()))
    assert seen[0] != seen[1]


def test_processes_share_the_batches_of_one(dataset):
    whole = list(make_loader(dataset, SQUARE, Sampling(6, seed=3)))
    shares = [list(make_loader(dataset, SQUARE, Sampling(3, seed=3, rank=rank, world_size=2))) for rank in (0, 1)]
    for (images, targets), *parts in zip(whole, *shares, strict=True):
        assert torch.equal(images, torch.cat([part[0] for part in parts]))
        for key in targets:
            assert torch.equal(targets[key], torch.cat([part[1][key] for part in parts]))
    with pytest.raises(ValueError, match="drop_last"):
        make_loader(dataset, SQUARE, Sampling(3, world_size=2, drop_last=False))


def pictures(portrait, landscape):
    """A dataset of sizes only; for tests that open no picture."""
    sizes = [(60, 90)] * portrait + [(90, 60)] * landscape
    none = np.zeros(0, bool)
    records = tuple(
        Record(index, Path(f"{index}.jpg"), *size, np.zeros((0, 4), np.float32), none, none, none, (), ())
        for index, size in enumerate(sizes)
    )
    return Dataset(Path("made-up"), "train", "coco", ("thing",), (1,), records)


def planned(loader, epoch=0):
    loader.set_epoch(epoch)
    return [[index for _, _, index in batch] for batch in loader._sampler]


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("batch_size", [1, 3, 4, 6, 8, 20])
def test_grouping_by_aspect_leaves_no_picture_out(batch_size, drop_last):
    dataset = pictures(portrait=3, landscape=17)
    loader = make_loader(dataset, FREE, Sampling(batch_size, group_aspect=True, drop_last=drop_last))
    plain = make_loader(dataset, FREE, Sampling(batch_size, drop_last=drop_last))
    seen = set()
    for epoch in range(12):
        batches = planned(loader, epoch)
        assert len(batches) == len(loader) == loader.batches_per_epoch
        entries = [index for batch in batches for index in batch]
        # The pictures of an epoch are those it has without grouping: nobody is dropped for the shape.
        assert sorted(entries) == sorted(index for batch in planned(plain, epoch) for index in batch)
        assert len(entries) == len(set(entries)) == (20 // batch_size * batch_size if drop_last else 20)
        assert all(len(batch) == batch_size for batch in batches[: 20 // batch_size])
        mixed = [number for number, batch in enumerate(batches) if len({index < 3 for index in batch}) > 1]
        # What is left of the two fills less than two batches, at the end.
        assert all(number >= len(batches) - 2 for number in mixed)
        assert len(mixed) <= (1 if drop_last else 2)
        seen.update(entries)
        assert batches == planned(loader, epoch)
    assert seen == set(range(20))


def test_grouped_batches_keep_the_draws_of_their_pictures():
    """A picture's augmentation is drawn by its position in the epoch, whatever batch it is put into."""
    dataset = pictures(portrait=7, landscape=13)
    grouped, plain = (
        at_epoch(make_loader(dataset, FREE, Sampling(4, seed=3, group_aspect=group)), 1) for group in (True, False)
    )
    entries = [sorted(entry for batch in loader._sampler for entry in batch) for loader in (grouped, plain)]
    assert entries[0] == entries[1] and len(entries[0]) == 20
    whole = planned(grouped, 1)
    assert whole != planned(plain, 1)
    grouped.set_epoch(1, 3)
    assert [[index for _, _, index in batch] for batch in grouped._sampler] == whole[3:] and len(grouped) == 2


def test_processes_share_grouped_batches():
    dataset = pictures(portrait=5, landscape=18)
    whole = make_loader(dataset, FREE, Sampling(6, seed=4, group_aspect=True))
    shares = [
        make_loader(dataset, FREE, Sampling(3, seed=4, group_aspect=True, rank=rank, world_size=2)) for rank in (0, 1)
    ]
    for epoch in range(4):
        parts = [planned(share, epoch) for share in shares]
        assert [first + second for first, second in zip(*parts, strict=True)] == planned(whole, epoch)
        taken = [index for part in parts for batch in part for index in batch]
        assert len(taken) == len(set(taken)) == 18 and all(len(batch) == 3 for part in parts for batch in part)


@pytest.mark.parametrize("drop_last", [True, False])
def test_grouped_batches_are_read(dataset, drop_last):
    portrait = [record.height > record.width for record in dataset.records]
    loader = make_loader(dataset, FREE, Sampling(5, group_aspect=True, drop_last=drop_last))
    batches, plan = list(loader), planned(loader)
    assert len(batches) == len(plan) == (2 if drop_last else 3)
    for (_, targets), indices in zip(batches, plan, strict=True):
        tall = (targets["sizes"][:, 0] > targets["sizes"][:, 1]).tolist()
        assert tall == [portrait[index] for index in indices]


def test_rows_are_few_sizes_that_hold_the_objects():
    sizes = [target_rows(objects) for objects in range(5000)]
    assert sorted(set(sizes)) == [
        8,
        16,
        24,
        32,
        48,
        64,
        96,
        128,
        192,
        256,
        384,
        512,
        768,
        1024,
        1536,
        2048,
        3072,
        4096,
        6144,
    ]
    assert all(objects <= rows <= max(16, 1.5 * objects) for objects, rows in enumerate(sizes))


def crowded(dataset, objects):
    """The dataset with an image of so many objects, all of them its first one."""
    full = next(record for record in dataset.records if not record.crowd.any() and len(record.boxes))
    index = np.zeros(objects, int)
    fields = {
        name: getattr(full, name)[index] for name in ("boxes", "labels", "crowd", "difficult", "areas", "weights")
    }
    fields["segmentations"] = (full.segmentations[0],) * objects
    fields["annotation_ids"] = tuple(range(objects))
    return replace(dataset, records=(*dataset.records, replace(full, **fields))), len(dataset.records)


def test_a_crowded_image_pads_its_own_batch_and_no_other(dataset):
    data, full = crowded(dataset, 100)
    loader = make_loader(data, FREE, Sampling(3, drop_last=False), Padding(masks=False))
    for batch, (_, targets) in zip(planned(loader), loader, strict=True):
        counts = [int((~data.records[index].crowd).sum()) for index in batch]
        assert targets["valid"].sum(1).tolist() == counts  # none is cut off
        assert targets["boxes"].shape[1] == (128 if full in batch else 8)
    fewest = make_loader(dataset, FREE, Sampling(3), Padding(masks=False, min_objects=9))
    assert {targets["boxes"].shape[1] for _, targets in fewest} == {16}


def test_processes_pad_a_batch_that_they_share_alike(dataset):
    """Random sampling draws by the number of rows, and must not depend on how a batch is spread."""
    data, full = crowded(dataset, 100)
    padding = Padding(masks=False)
    shares = [make_loader(data, FREE, Sampling(3, seed=2, rank=rank, world_size=2), padding) for rank in (0, 1)]
    whole = make_loader(data, FREE, Sampling(6, seed=2), padding)
    rows = [[targets["boxes"].shape[1] for _, targets in loader] for loader in (*shares, whole)]
    assert rows[0] == rows[1] == rows[2] and len(rows[0]) == 2
    assert [128 if full in batch else 8 for batch in planned(whole)] == rows[0] != [8, 8]


def test_empty_images_are_kept_unless_skipped(dataset):
    assert make_loader(dataset, SQUARE, Sampling(2)).images == 12
    assert make_loader(dataset, SQUARE, Sampling(2, skip_empty=True)).images == 11
    valid = torch.cat([targets["valid"] for _, targets in make_loader(dataset, SQUARE, Sampling(2))])
    assert (~valid.any(dim=1)).sum() == 1


def test_without_masks(dataset, write_coco):
    _, targets = next(iter(make_loader(dataset, SQUARE, Sampling(2), Padding(masks=False))))
    assert "masks" not in targets
    some = [{"bbox": [1, 1, 9, 9], "segmentation": [[1, 1, 9, 1, 9, 9]]}, {"bbox": [1, 1, 9, 9]}]
    partly = load_dataset(write_coco(some), "train")
    assert "masks" not in next(iter(make_loader(partly, SQUARE, Sampling(1))))[1]
    with pytest.raises(UserError, match="1 of 2 objects have a mask"):
        make_loader(partly, SQUARE, Sampling(1), Padding(masks=True))


def test_too_few_images(dataset):
    with pytest.raises(UserError, match="12 images do not fill one batch of 13"):
        make_loader(dataset, SQUARE, Sampling(13))
    assert len(list(make_loader(dataset, SQUARE, Sampling(13, drop_last=False)))) == 1


def test_boxes_follow_the_pixels_through_a_batch(write_coco):
    import cv2

    root = write_coco([{"bbox": [10, 6, 15, 12]}])
    image = np.full((30, 40, 3), (255, 0, 0), np.uint8)
    image[6:18, 10:25] = (0, 0, 255)
    cv2.imwrite(str(root / "train2017" / "a.png"), image)
    for epoch in range(6):
        images, targets = next(iter(at_epoch(make_loader(load_dataset(root, "train"), FREE, Sampling(1)), epoch)))
        red = (images[0, 0].int() > images[0, 2].int()) & (images[0, 1] < 60)
        rows, columns = torch.nonzero(red.any(dim=1)).flatten(), torch.nonzero(red.any(dim=0)).flatten()
        extent = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        np.testing.assert_allclose(targets["boxes"][0, 0], extent, atol=1.01)
