"""Networks, losses and post-processing: tensors in, tensors out. Needs only torch and torchvision."""
