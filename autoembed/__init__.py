"""autoembed: features, embedding widths and interactions for click models, found and taken to production."""

__version__ = "0.1.0"
