"""The rewriter: ONNX in, ONNX with stof nodes out.

Folders: ``symbolic`` reads a graph as index arithmetic, ``attention`` finds attention
blocks with it, ``masks`` lifts and proves their masks, ``passes`` transform the graph.
Imports ``stof_onnx.ir`` and nothing else of stof-onnx.
"""
