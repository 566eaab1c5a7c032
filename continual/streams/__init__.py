"""Data enters here: data sets, random numbers, tasks and streams."""
