"""Which batch and resolution fit a GPU, and what a step takes there."""
