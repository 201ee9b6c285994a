// TensorRT's plugin interface: NVIDIA's headers where CMake is given them
// (-DSTOF_TENSORRT_INCLUDE_DIR=DIR), our own declaration of the same otherwise.
#ifndef STOF_TRT_TENSORRT_H
#define STOF_TRT_TENSORRT_H

#ifdef STOF_USE_TENSORRT_HEADERS
#include <NvInferRuntime.h>
#else
#include "abi/tensorrt_abi.h"
#endif

#endif  // STOF_TRT_TENSORRT_H
