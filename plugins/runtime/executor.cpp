#include "runtime/executor.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <string>
#include <utility>

#include "runtime/driver_api.h"
#include "runtime/modules.h"

namespace stof {
namespace {

constexpr std::int64_t kMaxGridX = std::numeric_limits<std::int32_t>::max();
constexpr std::int64_t kMaxGridYZ = 65535;

// A pointer argument, to be filled in by every enqueue.
struct PointerArgument {
  std::size_t slot;  // index in PreparedLaunch::values
  ArgumentKind source;
  std::uint32_t tensor;
  std::uint64_t offset;
  std::uint32_t alignment;
};

// A launch at known shapes: all but the addresses.
struct PreparedLaunch {
  cuda::Function function;
  const Kernel* kernel;
  unsigned grid[3];
  unsigned block[3];
  unsigned shared;
  std::vector<std::uint64_t> values;  // one a parameter, whose bytes are the first ones
  std::vector<void*> parameters;      // point to the values
  std::vector<PointerArgument> pointers;
};

template <typename T>
void store(std::uint64_t& slot, T value) {
  static_assert(sizeof value <= sizeof slot, "a slot holds every kind of argument");
  std::memcpy(&slot, &value, sizeof value);
}

// The value if it is in min ... max.
std::int64_t in_range(std::int64_t value, std::int64_t min, std::int64_t max,
                      const std::string& what) {
  if (min <= value && value <= max) return value;
  throw PlanError(what + " is " + std::to_string(value) + " at these shapes, it must be in " +
                  std::to_string(min) + " ... " + std::to_string(max) +
                  "; use smaller shapes or run `stof-onnx optimize` again");
}

std::string describe(const Kernel& kernel) {
  return "kernel " + kernel.entry + " (" + kernel.template_name + ")";
}

std::string size_text(const unsigned (&size)[3]) {
  return std::to_string(size[0]) + " x " + std::to_string(size[1]) + " x " +
         std::to_string(size[2]);
}

// Argument values and places for addresses of one launch.
void prepare_arguments(const Launch& launch, const std::vector<std::int64_t>& symbols,
                       std::int64_t workspace, PreparedLaunch& prepared) {
  const std::size_t count = launch.arguments.size();
  prepared.values.assign(count, 0);
  for (std::size_t i = 0; i < count; ++i) {
    const Argument& argument = launch.arguments[i];
    std::uint64_t& slot = prepared.values[i];
    const std::string what = "argument " + std::to_string(i) + " of " + describe(*prepared.kernel);
    switch (argument.kind) {
      case ArgumentKind::kInput:
      case ArgumentKind::kOutput:
        prepared.pointers.push_back({i, argument.kind, argument.tensor,
                                     static_cast<std::uint64_t>(argument.offset),
                                     argument.alignment});
        break;
      case ArgumentKind::kWorkspace: {
        const std::int64_t offset =
            in_range(evaluate(argument.quantity, symbols), 0, workspace, what);
        prepared.pointers.push_back(
            {i, argument.kind, 0, static_cast<std::uint64_t>(offset), argument.alignment});
        break;
      }
      case ArgumentKind::kInt32: {
        using Limits = std::numeric_limits<std::int32_t>;
        const std::int64_t value =
            in_range(evaluate(argument.quantity, symbols), Limits::min(), Limits::max(), what);
        store(slot, static_cast<std::int32_t>(value));
        break;
      }
      case ArgumentKind::kInt64:
        store(slot, evaluate(argument.quantity, symbols));
        break;
      case ArgumentKind::kFloat32:
        store(slot, argument.value);
        break;
    }
  }
  // A vector's elements stay where they are when it is moved.
  for (std::uint64_t& value : prepared.values) prepared.parameters.push_back(&value);
}

// Upper and lower bounds of the symbols for which a bucket may be taken at some shapes.
struct SymbolBounds {
  std::vector<std::int64_t> low;
  std::vector<std::int64_t> high;
  bool is_empty;  // the bucket isn't taken at any of these shapes
};

// At the shapes with these symbols and smaller ones.
SymbolBounds reachable(const Bucket& bucket, const std::vector<std::int64_t>& symbols) {
  SymbolBounds bounds{std::vector<std::int64_t>(symbols.size(), 0), symbols, false};
  for (const Range& range : bucket.ranges) {
    std::int64_t& low = bounds.low[range.symbol];
    std::int64_t& high = bounds.high[range.symbol];
    low = std::max(low, range.min);
    high = std::min(high, range.max);
    bounds.is_empty = bounds.is_empty || low > high;
  }
  return bounds;
}

// No smaller than the quantity is anywhere in the bounds: symbols aren't negative, so that terms
// with a positive factor grow with them and others shrink.
std::int64_t upper_bound(const Quantity& quantity, const SymbolBounds& bounds) {
  Quantity growing;
  Quantity shrinking;
  for (const Term& term : quantity.terms) {
    (term.factor >= 0 ? growing : shrinking).terms.push_back(term);
  }
  return evaluate(growing, bounds.high) + evaluate(shrinking, bounds.low);
}

}  // namespace

std::size_t workspace_size(const Plan& plan, const std::vector<Dimensions>& inputs,
                           const std::vector<Dimensions>& outputs) {
  const std::vector<std::int64_t> symbols = evaluate_symbols(plan, inputs, outputs);
  std::int64_t largest = 0;
  for (const Variant& variant : plan.variants) {
    for (const Bucket& bucket : variant.buckets) {
      const SymbolBounds bounds = reachable(bucket, symbols);
      if (!bounds.is_empty) largest = std::max(largest, upper_bound(bucket.workspace, bounds));
    }
  }
  return static_cast<std::size_t>(largest);
}

struct Executor::State {
  std::shared_ptr<const Plan> plan;
  const cuda::Driver& driver;
  cuda::Context context;
  const Variant& variant;
  std::vector<std::shared_ptr<LoadedModule>> modules;
  std::vector<cuda::Function> functions;  // by kernel of the variant
  // At the current shapes; nullptr before the first ones and after bad ones.
  const Bucket* bucket = nullptr;
  std::int64_t workspace = 0;
  std::vector<PreparedLaunch> launches;

  explicit State(std::shared_ptr<const Plan> shared_plan)
      : plan(std::move(shared_plan)),
        driver(cuda::driver()),
        context(cuda::current_context()),
        variant(variant_for_device(*plan)) {
    for (const Kernel& kernel : variant.kernels) {
      // Shares ownership of the plan: a module keeps its image's bytes for comparison.
      const std::shared_ptr<const Image> image(plan, &plan->images[kernel.image]);
      modules.push_back(acquire_module(image));
      functions.push_back(modules.back()->function(kernel));
    }
  }

  static const Variant& variant_for_device(const Plan& plan) {
    const Capability capability = current_capability();
    return require_variant(plan, capability.major, capability.minor);
  }

  // False if there is nothing to compute.
  bool prepare(const Launch& launch, const std::vector<std::int64_t>& symbols,
               std::int64_t workspace_bytes, PreparedLaunch& prepared) const;
  void* address(const PointerArgument& argument, const Kernel& kernel, const void* const* inputs,
                void* const* outputs, void* workspace_base) const;
  void run(PreparedLaunch& launch, const void* const* inputs, void* const* outputs,
           void* workspace_base, cuda::Stream stream) const;
  void check_context() const;
};

bool Executor::State::prepare(const Launch& launch, const std::vector<std::int64_t>& symbols,
                              std::int64_t workspace_bytes, PreparedLaunch& prepared) const {
  const Kernel& kernel = variant.kernels[launch.kernel];
  prepared.function = functions[launch.kernel];
  prepared.kernel = &kernel;
  bool is_empty = false;
  for (std::size_t axis = 0; axis < 3; ++axis) {
    const std::int64_t limit = axis == 0 ? kMaxGridX : kMaxGridYZ;
    const std::int64_t size =
        in_range(evaluate(launch.grid[axis], symbols), 0, limit, "the grid of " + describe(kernel));
    is_empty = is_empty || size == 0;
    prepared.grid[axis] = static_cast<unsigned>(size);
    prepared.block[axis] = launch.block[axis];
  }
  if (is_empty) return false;
  prepared.shared =
      static_cast<unsigned>(in_range(evaluate(launch.shared, symbols), 0, kernel.max_dynamic_shared,
                                     "the shared memory of " + describe(kernel)));
  prepare_arguments(launch, symbols, workspace_bytes, prepared);
  return true;
}

void* Executor::State::address(const PointerArgument& argument, const Kernel& kernel,
                               const void* const* inputs, void* const* outputs,
                               void* workspace_base) const {
  const void* base = workspace_base;
  const char* source = "workspace";
  if (argument.source == ArgumentKind::kInput) {
    base = inputs[argument.tensor];
    source = "input ";
  } else if (argument.source == ArgumentKind::kOutput) {
    base = outputs[argument.tensor];
    source = "output ";
  }
  const std::uintptr_t value = reinterpret_cast<std::uintptr_t>(base) + argument.offset;
  if (value % argument.alignment == 0) return reinterpret_cast<void*>(value);
  const bool is_tensor = argument.source != ArgumentKind::kWorkspace;
  throw PlanError(source + (is_tensor ? std::to_string(argument.tensor) : std::string()) +
                  " plus " + std::to_string(argument.offset) + " bytes is not at a multiple of " +
                  std::to_string(argument.alignment) + " bytes, which " + describe(kernel) +
                  " needs; pass memory as it was allocated");
}

void Executor::State::run(PreparedLaunch& launch, const void* const* inputs, void* const* outputs,
                          void* workspace_base, cuda::Stream stream) const {
  for (const PointerArgument& pointer : launch.pointers) {
    store(launch.values[pointer.slot],
          address(pointer, *launch.kernel, inputs, outputs, workspace_base));
  }
  const cuda::Result result = driver.cuLaunchKernel(
      launch.function, launch.grid[0], launch.grid[1], launch.grid[2], launch.block[0],
      launch.block[1], launch.block[2], launch.shared, stream, launch.parameters.data(), nullptr);
  if (result == cuda::kSuccess) return;
  throw DriverError("cuLaunchKernel failed with " + cuda::describe_error(driver, result) + ": " +
                    describe(*launch.kernel) + ", " + size_text(launch.grid) + " blocks of " +
                    size_text(launch.block) + " threads, " + std::to_string(launch.shared) +
                    " bytes of dynamic shared memory");
}

// Functions and streams belong to a context; the driver's own message is "invalid handle".
void Executor::State::check_context() const {
  cuda::Context current = nullptr;
  cuda::check(driver, driver.cuCtxGetCurrent(&current), "cuCtxGetCurrent");
  if (current == context) return;
  throw PlanError(current == nullptr
                      ? "no CUDA context is current in the thread that runs " + plan->op +
                            "; make the one current in which the execution context was created"
                      : plan->op +
                            " runs in another CUDA context than its execution context was created "
                            "in; create one execution context for each CUDA context");
}

Executor::Executor(std::shared_ptr<const Plan> plan)
    : state_(std::make_unique<State>(std::move(plan))) {}

Executor::~Executor() = default;

void Executor::set_shapes(const std::vector<Dimensions>& inputs,
                          const std::vector<Dimensions>& outputs) {
  State& state = *state_;
  state.bucket = nullptr;  // if the new shapes are bad, the old launches must not run
  state.workspace = 0;
  state.launches.clear();
  const std::vector<std::int64_t> symbols = evaluate_symbols(*state.plan, inputs, outputs);
  const Bucket& bucket = find_bucket(state.variant, symbols);
  const std::int64_t workspace =
      in_range(evaluate(bucket.workspace, symbols), 0, std::numeric_limits<std::int64_t>::max(),
               "the workspace");
  std::vector<PreparedLaunch> launches;
  for (const Launch& launch : bucket.launches) {
    PreparedLaunch prepared{};
    if (!state.prepare(launch, symbols, workspace, prepared)) continue;
    launches.push_back(std::move(prepared));
  }
  state.launches = std::move(launches);
  state.workspace = workspace;
  state.bucket = &bucket;
}

void Executor::enqueue(const void* const* inputs, void* const* outputs, void* workspace,
                       void* stream) {
  State& state = *state_;
  if (state.bucket == nullptr) {
    throw PlanError(state.plan->op +
                    " has no shapes to run at: set_shapes (onShapeChange) must succeed first");
  }
  state.check_context();
  if (state.workspace > 0 && workspace == nullptr && !state.launches.empty()) {
    throw PlanError(state.plan->op + " needs a workspace of " + std::to_string(state.workspace) +
                    " bytes, but none came; reserve what its workspace size says");
  }
  for (PreparedLaunch& launch : state.launches) {
    state.run(launch, inputs, outputs, workspace, static_cast<cuda::Stream>(stream));
  }
}

std::size_t Executor::workspace_size() const { return static_cast<std::size_t>(state_->workspace); }

const std::string& Executor::target() const { return state_->variant.target; }

const std::string& Executor::tactic() const {
  static const std::string none;
  return state_->bucket != nullptr ? state_->bucket->tactic : none;
}

}  // namespace stof
