"""Attention operators written out in standard operators, so that the matcher reads them.

Each file knows one operator: it builds the equivalent sub-graph in the place of the node and
hands over its Softmax. ``lower.py`` holds the registry; ``shapes.py`` lets shapes be known
behind operators that are not lowered.
"""
