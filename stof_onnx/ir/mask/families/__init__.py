"""Mask families: each file knows one and is registered in ``ir.mask.classify``."""
