"""What computes: one kind of function from images to probabilities, over torch and the runtimes of exported files."""
