"""What every room may use: the errors a user sees, and atomic files."""
