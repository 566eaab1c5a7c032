"""Runs, published tables, and what cards say of papers and data, as YAML files; lists of classes as text."""
