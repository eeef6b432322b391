"""The search: its space, what candidates cost, trials, algorithms, Ray Tune, the Pareto front."""
