"""The verbs of the command line, by the step of the work. Each imports what it needs when it runs: help stays fast."""
