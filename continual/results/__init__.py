"""What was measured leaves here: metrics, stored runs and tables."""
