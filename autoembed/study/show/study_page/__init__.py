"""A study as one HTML page: markup, charts as inline SVG, the verdict and the sections."""
