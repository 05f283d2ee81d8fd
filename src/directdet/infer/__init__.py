"""Running detectors: preprocessing, runtimes, detections, accuracy. Needs no torch for an artefact."""
