"""A study's mirror in MLflow."""
