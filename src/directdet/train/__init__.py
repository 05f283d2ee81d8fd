"""Training: weights, normalisation, the step, the loop and the run."""
