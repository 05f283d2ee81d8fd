"""RetinaNet: configuration, network, losses and deployed form."""
