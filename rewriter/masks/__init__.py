"""From the mask operands of a matched block to a proven MaskProgram."""
