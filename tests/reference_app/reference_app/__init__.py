"""The reference application: a small service that uses MongoDB and Redis the way a trading release does."""
