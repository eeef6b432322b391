"""The commands of `unetpp`, a file for each task. Each command imports what it needs when it runs."""
