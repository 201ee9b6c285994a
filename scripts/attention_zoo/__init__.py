"""Exports small random-weight Transformers in the forms that the world's exporters write."""
