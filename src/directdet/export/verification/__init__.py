"""Whether an artefact finds what PyTorch finds: detections matched one by one, AP, criteria and the verdict."""
