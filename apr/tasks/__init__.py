"""Tasks, a folder each. May import `core`, `language`."""
