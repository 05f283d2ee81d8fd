"""Building blocks shared by the detectors: boxes, anchors, normalisation, pooling, matching, NMS."""
