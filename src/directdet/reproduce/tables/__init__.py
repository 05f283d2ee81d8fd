"""The rows of the papers' tables and figures, scaled down, and what they are to show: plain data."""
