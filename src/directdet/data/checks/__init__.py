"""What check-data looks for beyond the annotation files: pictures that occur twice, and where its findings are."""
