"""RTMDet-Ins: network, masks by dynamic convolution, losses and deployed form."""
