"""What several detectors are made of: boxes, anchors, normalisation, pooling, matching, NMS."""
