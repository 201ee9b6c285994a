"""The leaf package: operator records, mask programs, block tables, targets, plans.

Imports nothing else of stof-onnx; everything else may import it.
"""
