"""The papers' tables and figures as runs, scaled to the machine."""
