"""Average precision by the COCO and VOC rules."""
