"""splitmirror: back up a running database, file by file, from a split mirror."""

__version__ = "0.1.0"
