"""Kernel templates: which kernels there are, for which nodes, and how they are launched.

A template is a ``.cuh`` file of ``plugins/kernels`` and a module here, which says what the template
can't do (``refusal``), which tactics there are, and writes for one node, tactic and target the
translation unit and the launch record. Nothing here compiles or needs a GPU.
"""
