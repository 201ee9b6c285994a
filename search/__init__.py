"""Two-stage search over fusion schemes and kernel tactics (STOF paper, section 4).

Empty in this release: every stof node is written without a plan, and no choice
has to be made. It may import ``stof_onnx.ir`` and nothing else of stof-onnx.
"""
