"""The command line, the plan of the pipeline and its commits to DVC. Imports packages when needed."""
