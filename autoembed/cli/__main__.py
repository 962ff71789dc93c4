"""`python -m autoembed.cli`."""

from autoembed.cli import main

main()
