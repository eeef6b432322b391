"""The pipeline around `unetpp`: params, sources, Ray, MLflow and a file for each stage."""

from unetpp.offline import silence

silence()
