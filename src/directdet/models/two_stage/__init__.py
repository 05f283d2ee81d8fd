"""Faster, Mask and Cascade R-CNN: networks, losses, deployed forms."""
