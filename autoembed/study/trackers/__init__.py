"""Who is told of a study while it runs."""
