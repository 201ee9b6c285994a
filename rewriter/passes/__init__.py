"""Passes over a whole graph: each returns how often it changed something."""
