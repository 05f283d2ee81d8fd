"""RetinaNet: network, losses, deployed form."""
