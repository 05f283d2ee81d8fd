"""Pictures that lie in tar files."""
