"""CUDA C++ to cubin or PTX: NVRTC in worker processes, and a cache of what it made.

``job`` holds the records, ``compile`` is the entry point, ``cache`` keeps compiled kernels,
``pool`` and ``worker`` are the two ends of the processes, ``nvrtc`` alone touches NVRTC.
Needs neither a GPU nor a driver nor a CUDA toolkit.
"""
