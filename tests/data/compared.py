"""What tests of the data room compare: whole datasets, and the batches of loaders."""

import torch

ARRAYS = ("boxes", "labels", "crowd", "difficult", "areas", "weights")


def everything(dataset):
    """All that a dataset says, to be compared."""
    records = [
        (
            *(record.image_id, record.path, record.width, record.height, record.annotation_ids),
            *(getattr(record, name).tobytes() for name in ARRAYS),
            *(getattr(record, name).dtype for name in ARRAYS),
            repr(record.segmentations),
        )
        for record in dataset.records
    ]
    # repr: NaN differs from itself
    return records, dataset.classes, dataset.category_ids, repr(dataset.problems), dataset.notes, dataset.errors


def at_epoch(loader, epoch, start_iteration=0):
    loader.set_epoch(epoch, start_iteration)
    return loader


def assert_equal_batches(first, second):
    first, second = list(first), list(second)
    assert len(first) == len(second) > 0
    for (images, targets), (other_images, other_targets) in zip(first, second, strict=True):
        assert torch.equal(images, other_images) and targets.keys() == other_targets.keys()
        assert all(torch.equal(targets[key], other_targets[key]) for key in targets)
