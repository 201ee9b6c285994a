"""An independent oracle: masked attention in fp64 numpy, written from the definitions.

It shares no code with the product, so that one mistake cannot hide in both.
"""
