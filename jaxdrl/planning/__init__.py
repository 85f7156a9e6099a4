"""What a run needs on machines that are not here: its real train step, compiled ahead of time, counted and compared with chips."""
