"""What a study found, and what is made of it: leaderboard, Pareto front, retraining over seeds, bundles."""
