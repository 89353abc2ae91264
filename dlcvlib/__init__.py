"""Models, training and report of dlcv-report. Importing the package imports no torch."""

__version__ = "0.2.0"
