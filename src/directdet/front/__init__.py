"""The command line: its verbs with their options and errors, and the demo."""
