"""Runs and published tables, as YAML files."""
