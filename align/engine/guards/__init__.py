"""Guards against forgetting: one file, one paper each."""
