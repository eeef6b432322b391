"""One training run: its spec, its processes, its signals, alone or under Ray Train."""
