"""Averages that a phase keeps or takes: of the weights over its steps, of normalisation's statistics over images."""
