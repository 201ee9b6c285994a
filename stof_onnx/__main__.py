"""``python -m stof_onnx`` is ``stof-onnx``."""

from stof_onnx.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
