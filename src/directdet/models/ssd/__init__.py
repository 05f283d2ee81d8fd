"""SSD: network, losses, deployed form."""
