"""The command line: verbs, their options and errors, and the demo."""
