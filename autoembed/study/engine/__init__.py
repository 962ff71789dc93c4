"""Runs a study: trials under Ray Tune and Optuna, on this machine or on a cluster."""
