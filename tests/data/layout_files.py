"""What the tests of layouts share: writing a file, and the boxes that were read."""

import numpy as np


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def boxes(dataset):
    return {record.path.name: np.round(record.boxes, 4).tolist() for record in dataset.records}
