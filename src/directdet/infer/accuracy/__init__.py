"""Average precision by the rules of COCO and VOC."""
