"""A bundle behind HTTP: rows in, predictions out."""
