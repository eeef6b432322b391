"""What a person sees of a run while it goes. No stage's result depends on it."""
