"""Dataset layouts: COCO, VOC, and dataset.toml."""
