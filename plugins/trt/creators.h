// The creators of all plugins in this library.
#ifndef STOF_TRT_CREATORS_H
#define STOF_TRT_CREATORS_H

#include <vector>

#include "trt/tensorrt.h"

namespace stof {

// They live until the process ends and may be used from any thread. A new plugin is added here.
const std::vector<nvinfer1::IPluginCreatorInterface*>& creators();

}  // namespace stof

#endif  // STOF_TRT_CREATORS_H
