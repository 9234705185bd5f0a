"""Faces on the command line: one verb a module, with NAME, HELP, `configure(parser)` and `run(args) -> int`."""
