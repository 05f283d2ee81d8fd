"""Detection on folders, videos and cameras, and the files with the results."""
