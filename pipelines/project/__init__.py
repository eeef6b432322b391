"""A project of one's own: written by `unetpp init`, renewed by `unetpp plan`, run by the installed package."""
