// nvinfer1::IExprBuilder for inputs of known shape: every expression is a number.
#ifndef STOF_HOST_CONSTANT_EXPRESSIONS_H
#define STOF_HOST_CONSTANT_EXPRESSIONS_H

#include <cstdint>
#include <deque>

#include "trt/tensorrt.h"

namespace stof {

class ConstantExpression final : public nvinfer1::IDimensionExpr {
 public:
  explicit ConstantExpression(std::int64_t value) : value_(value) { mImpl = &value_; }
  ~ConstantExpression() noexcept override = default;

 private:
  class Value final : public nvinfer1::apiv::VDimensionExpr {
   public:
    explicit Value(std::int64_t value) : value_(value) {}
    bool isConstant() const override { return true; }
    std::int64_t getConstantValue() const override { return value_; }
    bool isSizeTensor() const override { return false; }

   private:
    const std::int64_t value_;
  };

  Value value_;
};

// Owns the expressions it makes.
class ConstantExpressionBuilder final : public nvinfer1::IExprBuilder {
 public:
  ConstantExpressionBuilder() { mImpl = &operations_; }
  ~ConstantExpressionBuilder() noexcept override = default;

 private:
  // Return nullptr for what has no value: overflow, division by zero, size tensors.
  class Operations final : public nvinfer1::apiv::VExprBuilder {
   public:
    const nvinfer1::IDimensionExpr* constant(std::int64_t value) override;
    const nvinfer1::IDimensionExpr* operation(nvinfer1::DimensionOperation op,
                                              const nvinfer1::IDimensionExpr& first,
                                              const nvinfer1::IDimensionExpr& second) override;
    const nvinfer1::IDimensionExpr* declareSizeTensor(
        std::int32_t outputIndex, const nvinfer1::IDimensionExpr& opt,
        const nvinfer1::IDimensionExpr& upper) override;

   private:
    std::deque<ConstantExpression> expressions_;  // addresses stay
  };

  Operations operations_;
};

}  // namespace stof

#endif  // STOF_HOST_CONSTANT_EXPRESSIONS_H
