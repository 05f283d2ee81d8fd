"""Training through `torch.compile`."""
