"""SSD: configuration, network, losses and deployed form."""
