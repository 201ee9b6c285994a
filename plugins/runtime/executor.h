// Runs a plan on a GPU: what every plugin class does in attach, onShapeChange and enqueue.
#ifndef STOF_RUNTIME_EXECUTOR_H
#define STOF_RUNTIME_EXECUTOR_H

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "plan/plan.h"

namespace stof {

// Workspace, in bytes, that is enough at these shapes and all smaller ones, whichever variant is
// chosen. Buckets that no such shapes reach don't count. Throws PlanError as evaluate_symbols does.
std::size_t workspace_size(const Plan& plan, const std::vector<Dimensions>& inputs,
                           const std::vector<Dimensions>& outputs);

// One execution context's state: the loaded kernels of a plan and the launches for the current
// shapes. Not thread safe, as execution contexts aren't; different executors are independent.
class Executor {
 public:
  // Finds the variant for the current CUDA context's device and loads its modules. The plan is
  // shared and never changes. Throws PlanError, or DriverError if there is no driver or GPU.
  explicit Executor(std::shared_ptr<const Plan> plan);
  ~Executor();
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  // Prepares the launches for these shapes. Throws PlanError; then there are no shapes.
  void set_shapes(const std::vector<Dimensions>& inputs, const std::vector<Dimensions>& outputs);

  // Launches on the stream (a CUstream). Needs set_shapes first, and the CUDA context of the
  // constructor. Allocates nothing, on device or host, synchronises nothing, and may be captured.
  // Throws PlanError or DriverError.
  void enqueue(const void* const* inputs, void* const* outputs, void* workspace, void* stream);

  // Bytes of workspace at the current shapes, 0 without any.
  std::size_t workspace_size() const;

  // Target of the chosen variant and the tactic of the chosen bucket, for logs; the tactic is empty
  // without shapes.
  const std::string& target() const;
  const std::string& tactic() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace stof

#endif  // STOF_RUNTIME_EXECUTOR_H
