"""`unetpp try`: a page on this machine on which a model is tried with one's own images."""
