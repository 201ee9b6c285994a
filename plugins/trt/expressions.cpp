#include "trt/expressions.h"

#include "trt/attributes.h"

namespace stof {

namespace {

const nvinfer1::IDimensionExpr* checked(const nvinfer1::IDimensionExpr* expression) {
  if (expression == nullptr) throw AttributeError("TensorRT can't express an output's dimension");
  return expression;
}

}  // namespace

const nvinfer1::IDimensionExpr* constant(nvinfer1::IExprBuilder& builder, std::int64_t value) {
  return checked(builder.constant(value));
}

const nvinfer1::IDimensionExpr* operation(nvinfer1::IExprBuilder& builder,
                                          nvinfer1::DimensionOperation op,
                                          const nvinfer1::IDimensionExpr* first,
                                          const nvinfer1::IDimensionExpr* second) {
  return checked(builder.operation(op, *checked(first), *checked(second)));
}

void set_shape(nvinfer1::DimsExprs& shape,
               std::initializer_list<const nvinfer1::IDimensionExpr*> dimensions) {
  shape.nbDims = 0;
  for (const nvinfer1::IDimensionExpr* const dimension : dimensions) {
    shape.d[shape.nbDims++] = checked(dimension);
  }
}

}  // namespace stof
