"""`unetpp try`: a page on this machine for trying a model with your own images."""
