// Output shapes as TensorRT's expressions of input dimensions. Throw AttributeError where TensorRT
// can't make an expression.
#ifndef STOF_TRT_EXPRESSIONS_H
#define STOF_TRT_EXPRESSIONS_H

#include <cstdint>
#include <initializer_list>

#include "trt/tensorrt.h"

namespace stof {

const nvinfer1::IDimensionExpr* constant(nvinfer1::IExprBuilder& builder, std::int64_t value);

const nvinfer1::IDimensionExpr* operation(nvinfer1::IExprBuilder& builder,
                                          nvinfer1::DimensionOperation op,
                                          const nvinfer1::IDimensionExpr* first,
                                          const nvinfer1::IDimensionExpr* second);

void set_shape(nvinfer1::DimsExprs& shape,
               std::initializer_list<const nvinfer1::IDimensionExpr*> dimensions);

}  // namespace stof

#endif  // STOF_TRT_EXPRESSIONS_H
