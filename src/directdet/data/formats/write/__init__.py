"""Writing a dataset in another format: one file each, and the folder that all are written to."""
