// The plan of a stof node, as read from its `plan` attribute. The format is docs/plan.md.
//
// Everything here is plain data without a GPU: read_plan() has checked every index, so that users
// of a Plan index without looking. Thread safe, as all const data.
#ifndef STOF_PLAN_PLAN_H
#define STOF_PLAN_PLAN_H

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace stof {

// A plan can't be used; what() says what came, what was wanted and what to do.
class PlanError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

enum class TensorSource : std::uint8_t { kInput = 0, kOutput = 1 };
enum class Match : std::uint8_t { kExact = 0, kMinor = 1, kNewer = 2 };
enum class ImageKind : std::uint8_t { kCubin = 0, kPtx = 1 };
enum class ArgumentKind : std::uint8_t {
  kInput = 0,
  kOutput = 1,
  kWorkspace = 2,
  kInt32 = 3,
  kInt64 = 4,
  kFloat32 = 5,
};

struct Symbol {
  std::string name;
  TensorSource source;
  std::uint32_t tensor;
  std::vector<std::uint32_t> axes;
};

struct Check {
  std::uint32_t symbol;
  std::int64_t min;
  std::int64_t max;  // inclusive; equal to min where one value is wanted
};

struct Ceil {
  std::uint32_t symbol;
  std::int64_t divisor;
};

struct Term {
  std::int64_t factor;
  std::vector<Ceil> parts;
};

struct Quantity {
  std::vector<Term> terms;
};

// The symbol must be 1 or at least `length`: an axis that is broadcast, or read that far.
struct Cover {
  std::uint32_t symbol;
  Quantity length;
};

struct Kernel {
  std::string template_name;
  std::string entry;
  ImageKind kind;
  std::uint32_t image;
  std::uint32_t registers;
  std::uint32_t static_shared;
  std::uint32_t max_dynamic_shared;
};

struct Argument {
  ArgumentKind kind;
  std::uint32_t tensor = 0;
  std::int64_t offset = 0;      // bytes, of kInput and kOutput
  std::uint32_t alignment = 1;  // bytes, of pointers
  Quantity quantity;            // offset of kWorkspace; value of kInt32 and kInt64
  float value = 0.0F;           // of kFloat32
};

struct Launch {
  std::uint32_t kernel;
  Quantity grid[3];
  std::uint32_t block[3];
  Quantity shared;
  std::vector<Argument> arguments;
};

struct Range {
  std::uint32_t symbol;
  std::int64_t min;
  std::int64_t max;
};

struct Bucket {
  std::vector<Range> ranges;
  std::string tactic;
  Quantity workspace;
  std::vector<Launch> launches;
};

struct Variant {
  std::string target;
  std::uint32_t major;
  std::uint32_t minor;
  Match match;
  std::vector<Kernel> kernels;
  std::vector<Bucket> buckets;
};

struct Image {
  std::vector<std::uint8_t> data;  // and a NUL that isn't part of the file: PTX is text
  std::uint64_t hash;              // of the content, to find modules again
};

struct Plan {
  std::string op;  // the operator's name
  std::string producer;
  std::uint32_t inputs;
  std::uint32_t outputs;
  std::vector<std::uint32_t> types;  // nvinfer1::DataType of the inputs, then of the outputs
  std::vector<Symbol> symbols;
  std::vector<Check> checks;
  std::vector<Cover> covers;
  std::vector<Image> images;
  std::vector<Variant> variants;
};

// Reads and checks the content of a `plan` attribute. Throws PlanError.
Plan read_plan(const void* data, std::size_t size);

// The variant for a device of this compute capability, or nullptr.
const Variant* find_variant(const Plan& plan, std::uint32_t major, std::uint32_t minor);

// The same; throws PlanError, naming the capability and the plan's targets, if there is none.
const Variant& require_variant(const Plan& plan, std::uint32_t major, std::uint32_t minor);

// "sm_80, sm_90": the plan's targets, for messages.
std::string describe_targets(const Plan& plan);

// Sizes of a node's tensors, as dimensions.
using Dimensions = std::vector<std::int64_t>;

// Values of the plan's symbols at these shapes. Throws PlanError for another number of tensors than
// the plan's, a tensor of too low a rank, an unknown (negative) dimension, an overflow, or a failed
// check or cover.
std::vector<std::int64_t> evaluate_symbols(const Plan& plan, const std::vector<Dimensions>& inputs,
                                           const std::vector<Dimensions>& outputs);

// Value of a quantity. Throws PlanError on overflow.
std::int64_t evaluate(const Quantity& quantity, const std::vector<std::int64_t>& symbols);

// The first bucket whose ranges hold; there always is one.
const Bucket& find_bucket(const Variant& variant, const std::vector<std::int64_t>& symbols);

}  // namespace stof

#endif  // STOF_PLAN_PLAN_H
