"""The layouts of annotation tools and of hubs: one file each."""
