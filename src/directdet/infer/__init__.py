"""Running detectors: preprocessing, runtimes, detections, accuracy. An artefact runs without torch."""
