"""TensorRT engines from optimized models, and the command lines that build the same ones."""

from stof_onnx.engine.building import BuildResult, build, build_commands
from stof_onnx.engine.commands import BuildCommands
from stof_onnx.engine.profiles import OptimizationProfile, ShapeRange

__all__ = [
    "BuildCommands",
    "BuildResult",
    "OptimizationProfile",
    "ShapeRange",
    "build",
    "build_commands",
]
