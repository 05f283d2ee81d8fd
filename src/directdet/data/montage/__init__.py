"""Montage pre-training's data: samples cut out of a detection set, four to a picture."""
