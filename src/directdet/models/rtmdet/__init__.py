"""RTMDet: configuration, network, assignment, losses and deployed form."""
