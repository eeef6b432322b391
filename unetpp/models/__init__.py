"""A trained network and the files that hold it: what it is, weights, the module that predicts, lists of exports."""
