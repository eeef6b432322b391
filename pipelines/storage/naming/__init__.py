"""Layouts by the names of files alone: templates, what folders' names mean, and which files pair up."""
