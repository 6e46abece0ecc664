"""Integer functions on arrays: the one definition of every number the compiler computes."""
