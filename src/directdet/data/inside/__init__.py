"""Pictures that lie inside larger files: members of tars, rows of Parquet files."""
