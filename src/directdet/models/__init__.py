"""Networks, criteria and post-processing: tensors in, tensors out. Needs torch and torchvision only."""
