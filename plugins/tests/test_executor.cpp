// Usage: test_executor FAKE_CUDA_LIBRARY
// The launcher on the fake driver: what it asks the driver for, in which order, and what becomes of
// failures.
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "allocation_count.h"
#include "checks.h"
#include "fake_cuda.h"
#include "plan/plan.h"
#include "plan_writer.h"
#include "runtime/driver.h"
#include "runtime/executor.h"

namespace stof {
namespace tests {
namespace {

using Shapes = std::vector<Dimensions>;

std::shared_ptr<const Plan> shared(const Plan& plan) {
  const Bytes bytes = write_plan(plan);
  return std::make_shared<const Plan>(read_plan(bytes.data(), bytes.size()));
}

std::string log() { return fake_cuda_log(); }

void* address(std::uintptr_t value) { return reinterpret_cast<void*>(value); }

// Inputs and output of the sample plan at aligned addresses.
struct Tensors {
  const void* inputs[2] = {address(0x10000), address(0x20004)};
  void* outputs[1] = {address(0x30000)};
  void* workspace = address(0x40000);
  void* stream = address(0x50);

  void enqueue(Executor& executor) const { executor.enqueue(inputs, outputs, workspace, stream); }
};

void set_shapes(Executor& executor, std::int64_t batch, std::int64_t length) {
  executor.set_shapes({{batch, length, 64}, {batch, length}}, {{batch, length, 64}});
}

void reset() {
  fake_cuda_reset();
  fake_cuda_set_signature("attention", "p,p,p,i32,i64,f32");
  fake_cuda_set_signature("reduce", "p,p");
  fake_cuda_set_signature("attention_ptx", "p,p");
}

// Before anything has loaded the driver.
void test_no_driver(const std::string& library) {
  set_driver_library("/nowhere/libcuda.so.1");
  CHECK_THROWS(DriverError, [] { current_capability(); }, "cannot load the CUDA driver", "none");
  set_driver_library("libm.so.6");
  CHECK_THROWS(DriverError, [] { current_capability(); }, "has no cuInit", "another library");
  set_driver_library(library);
  fake_cuda_fail_next("cuInit", 100);
  CHECK_THROWS(
      DriverError, [] { current_capability(); },
      "cuInit failed with CUDA_ERROR_NO_DEVICE (100): the fake driver's text", "no GPU");
  CHECK(current_capability().major == 9);
  set_driver_library(library);
  CHECK_THROWS(std::logic_error, [] { set_driver_library("libcuda.so.1"); }, "is in use", "late");
}

void test_capability() {
  reset();
  fake_cuda_set_capability(12, 1);
  CHECK(current_capability().major == 12 && current_capability().minor == 1);
  fake_cuda_set_current(nullptr);
  CHECK_THROWS(DriverError, [] { current_capability(); }, "no CUDA context", "no context");
  for (const char* const call : {"cuCtxGetCurrent", "cuCtxGetDevice", "cuDeviceGetAttribute"}) {
    reset();
    fake_cuda_fail_next(call, 999);
    CHECK_THROWS(
        DriverError, [] { current_capability(); },
        std::string(call) + " failed with unknown error (999)", call);
  }
}

// All that can be done early is done by the constructor; enqueue only looks at the context and
// launches.
void test_launches() {
  reset();
  const Tensors tensors;
  Executor executor(shared(sample_plan()));
  CHECK(executor.target() == "sm_90");
  CHECK(executor.tactic().empty() && executor.workspace_size() == 0);
  CHECK(fake_cuda_call_count("cuModuleLoadDataEx") == 1);
  CHECK_CONTAINS(log(), " image=a cubin for sm_90\n");
  CHECK_CONTAINS(log(), "cuFuncLoad entry=attention\n");
  CHECK_CONTAINS(log(), "cuFuncLoad entry=reduce\n");
  CHECK_CONTAINS(log(), "cuFuncSetAttribute entry=attention attribute=8 value=65536\n");
  CHECK(fake_cuda_call_count("cuFuncSetAttribute") == 1);

  fake_cuda_clear_log();
  set_shapes(executor, 3, 100);
  CHECK(log().empty());
  CHECK(executor.tactic() == "{\"split\":2}");
  CHECK(executor.workspace_size() == 1024 * 150);
  tensors.enqueue(executor);
  const std::string split =
      "cuLaunchKernel entry=attention grid=2,6,1 block=128,2,1 shared=1076 stream=0x50 "
      "args=0x10020,0x20004,0x40300,-300,1288490188800,0.5\n";
  const std::string reduce =
      "cuLaunchKernel entry=reduce grid=2,1,1 block=256,1,1 shared=0 stream=0x50 "
      "args=0x40000,0x30000\n";
  CHECK(log() == "cuCtxGetCurrent\n" + split + reduce);

  // The same launches again, at other addresses.
  fake_cuda_clear_log();
  Tensors moved;
  moved.inputs[1] = address(0x60000);
  moved.enqueue(executor);
  CHECK_CONTAINS(log(), "args=0x10020,0x60000,0x40300,-300,1288490188800,0.5\n");

  // The bucket for short sequences needs no workspace.
  fake_cuda_clear_log();
  set_shapes(executor, 3, 64);
  CHECK(executor.tactic() == "{\"tile\":64}" && executor.workspace_size() == 0);
  fake_cuda_set_signature("attention", "p,p");
  moved.workspace = nullptr;
  moved.enqueue(executor);
  CHECK(log() ==
        "cuCtxGetCurrent\ncuLaunchKernel entry=attention grid=1,3,1 block=64,1,1 shared=512 "
        "stream=0x50 args=0x10000,0x30000\n");
}

void test_variants() {
  reset();
  fake_cuda_set_capability(8, 9);
  Executor executor(shared(sample_plan()));
  CHECK(executor.target() == "sm_80");
  CHECK_CONTAINS(log(), " image=PTX for 8.0\n");
  CHECK(fake_cuda_call_count("cuModuleLoadDataEx") == 1);
  CHECK(fake_cuda_call_count("cuFuncSetAttribute") == 0);

  fake_cuda_set_capability(7, 5);
  CHECK_THROWS(PlanError, [] { Executor(shared(sample_plan())); }, "compute capability 7.5", "7.5");
}

// Grids with a 0 in them aren't launched, and the rest of their launch isn't looked at.
void test_empty_grid() {
  reset();
  Plan plan = sample_plan();
  plan.variants[1].buckets[1].launches[0].shared = constant(-1);
  Executor executor(shared(plan));
  executor.set_shapes({{0, 100, 64}, {0, 100}}, {{2, 100, 64}});
  CHECK(executor.workspace_size() == 1024 * 100);
  fake_cuda_clear_log();
  Tensors().enqueue(executor);
  CHECK(fake_cuda_call_count("cuLaunchKernel") == 1);
  CHECK_CONTAINS(log(), "entry=reduce");
  set_shapes(executor, 0, 100);
  Tensors nothing;
  nothing.workspace = nullptr;
  nothing.enqueue(executor);
  CHECK(fake_cuda_call_count("cuLaunchKernel") == 1);
}

struct BadShape {
  const char* name;
  std::function<void(Bucket&)> spoil;
  const char* message;  // nullptr: just possible
};

std::vector<BadShape> bad_shapes() {
  const auto grid = [](std::size_t axis, std::int64_t size) {
    return [axis, size](Bucket& b) { b.launches[0].grid[axis] = constant(size); };
  };
  const auto argument = [](std::size_t index, const Quantity& quantity) {
    return [index, quantity](Bucket& b) { b.launches[0].arguments[index].quantity = quantity; };
  };
  return {
      {"grid x", grid(0, 0x7FFFFFFF), nullptr},
      {"grid x too large", grid(0, 0x80000000), "the grid of kernel attention (attention_mma)"},
      {"grid y", grid(1, 65535), nullptr},
      {"grid y too large", grid(1, 65536), "is 65536 at these shapes, it must be in 0 ... 65535"},
      {"grid z too large", grid(2, 65536), "the grid of kernel attention"},
      {"grid negative", grid(2, -1), "is -1 at these shapes"},
      {"shared memory", [](Bucket& b) { b.launches[0].shared = constant(65536); }, nullptr},
      {"shared memory too large", [](Bucket& b) { b.launches[0].shared = constant(65537); },
       "the shared memory of kernel attention"},
      {"shared memory negative", [](Bucket& b) { b.launches[0].shared = constant(-1); },
       "the shared memory"},
      {"workspace negative", [](Bucket& b) { b.workspace = constant(-1); }, "the workspace is -1"},
      {"offset at the end", argument(2, scaled(1024, 2, 2)), nullptr},
      {"offset beyond", argument(2, Quantity{{Term{1024, {Ceil{2, 2}}}, Term{1, {}}}}),
       "argument 2 of kernel attention (attention_mma) is 153601"},
      {"offset negative", argument(2, constant(-256)), "argument 2"},
      {"i32", argument(3, constant(0x7FFFFFFF)), nullptr},
      {"i32 too large", argument(3, constant(0x80000000)), "argument 3"},
      {"i32 negative", argument(3, constant(-0x80000000LL)), nullptr},
      {"i32 too small", argument(3, constant(-0x80000001LL)), "argument 3"},
      {"i64", argument(4, constant(INT64_MIN)), nullptr},
      {"overflow", argument(4, scaled(INT64_MAX, 0)), "larger than"},
  };
}

void test_bad_shapes() {
  for (const BadShape& bad : bad_shapes()) {
    reset();
    Plan plan = sample_plan();
    bad.spoil(plan.variants[1].buckets[1]);
    Executor executor(shared(plan));
    set_shapes(executor, 3, 64);  // good ones, which must not survive bad ones
    if (bad.message == nullptr) {
      set_shapes(executor, 3, 100);
      Tensors().enqueue(executor);
      check(fake_cuda_call_count("cuLaunchKernel") == 2, bad.name, __FILE__, __LINE__);
      continue;
    }
    CHECK_THROWS(PlanError, [&] { set_shapes(executor, 3, 100); }, bad.message, bad.name);
    CHECK_THROWS(PlanError, [&] { Tensors().enqueue(executor); }, "no shapes to run at", bad.name);
    CHECK(executor.workspace_size() == 0 && executor.tactic().empty());
  }
}

void test_bad_enqueues() {
  reset();
  Executor executor(shared(sample_plan()));
  CHECK_THROWS(PlanError, [&] { Tensors().enqueue(executor); }, "no shapes to run at", "early");
  set_shapes(executor, 3, 100);
  struct BadEnqueue {
    const char* name;
    std::function<void(Tensors&)> spoil;
    const char* message;
  };
  const std::vector<BadEnqueue> cases = {
      {"input", [](Tensors& t) { t.inputs[0] = address(0x10008); },
       "input 0 plus 32 bytes is not at a multiple of 16"},
      {"input of 4", [](Tensors& t) { t.inputs[1] = address(0x20002); }, "input 1 plus 0 bytes"},
      {"output", [](Tensors& t) { t.outputs[0] = address(0x30001); }, "output 0 plus 0 bytes"},
      {"workspace", [](Tensors& t) { t.workspace = address(0x40080); },
       "workspace plus 768 bytes is not at a multiple of 256"},
      {"no workspace", [](Tensors& t) { t.workspace = nullptr; }, "workspace of 153600 bytes"},
  };
  for (const BadEnqueue& bad : cases) {
    Tensors tensors;
    bad.spoil(tensors);
    CHECK_THROWS(PlanError, [&] { tensors.enqueue(executor); }, bad.message, bad.name);
  }
  fake_cuda_fail_next("cuLaunchKernel", 700);
  const std::string message =
      message_of<DriverError>([&] { Tensors().enqueue(executor); }, "launch", __FILE__, __LINE__);
  CHECK_CONTAINS(message, "cuLaunchKernel failed with CUDA_ERROR_ILLEGAL_ADDRESS (700)");
  CHECK_CONTAINS(message, "kernel attention (attention_mma), 2 x 6 x 1 blocks of 128 x 2 x 1");
  fake_cuda_fail_next("cuCtxGetCurrent", 4);
  CHECK_THROWS(DriverError, [&] { Tensors().enqueue(executor); }, "CUDA_ERROR_DEINITIALIZED", "");
  const int launched = fake_cuda_call_count("cuLaunchKernel");
  Tensors().enqueue(executor);  // failures leave the executor as it was
  CHECK(fake_cuda_call_count("cuLaunchKernel") == launched + 2);
}

void test_failing_constructor() {
  struct Failure {
    const char* call;
    int error;
    const char* message;
  };
  const std::vector<Failure> failures_of_calls = {
      {"cuCtxGetCurrent", 201, "cuCtxGetCurrent failed with CUDA_ERROR_INVALID_CONTEXT"},
      {"cuCtxGetDevice", 201, "cuCtxGetDevice failed"},
      {"cuDeviceGetAttribute", 1, "cuDeviceGetAttribute failed"},
      {"cuCtxGetId", 709, "cuCtxGetId failed"},
      {"cuModuleLoadDataEx", 218, "CUDA_ERROR_INVALID_PTX (218)"},
      {"cuModuleLoadDataEx", 209, "the driver's log: line 1: fake"},
      {"cuModuleGetFunction", 500, "cuModuleGetFunction(attention) failed with CUDA_ERROR_NOT"},
      {"cuFuncLoad", 2, "cuFuncLoad failed with unknown error (2)"},
      {"cuFuncGetAttribute", 1, "cuFuncGetAttribute failed"},
      {"cuFuncSetAttribute", 1,
       "kernel attention (attention_mma) needs 256 + 65536 bytes of static and dynamic shared "
       "memory, this GPU allows a block 232448"},
  };
  for (const Failure& failure : failures_of_calls) {
    reset();
    fake_cuda_fail_next(failure.call, failure.error);
    CHECK_THROWS(
        DriverError, [] { Executor(shared(sample_plan())); }, failure.message, failure.call);
    check(fake_cuda_live_modules() == 0, failure.call, __FILE__, __LINE__);
  }
  reset();
  Plan plan = sample_plan();
  plan.variants[1].kernels[0].max_dynamic_shared = 0xFFFFFFFFU;
  CHECK_THROWS(DriverError, [&] { Executor(shared(plan)); }, "256 + 4294967295 bytes", "too much");
}

void test_shared_modules() {
  reset();
  auto first = std::make_unique<Executor>(shared(sample_plan()));
  auto second = std::make_unique<Executor>(shared(sample_plan()));  // another plan, the same bytes
  CHECK(fake_cuda_call_count("cuModuleLoadDataEx") == 1);
  first.reset();
  CHECK(fake_cuda_live_modules() == 1);
  set_shapes(*second, 3, 100);
  Tensors().enqueue(*second);

  // Needs less shared memory of the same function: must not take it away.
  Plan modest = sample_plan();
  modest.variants[1].kernels[0].max_dynamic_shared = 50000;
  modest.images.push_back(make_image("not loaded"));
  auto third = std::make_unique<Executor>(shared(modest));
  CHECK(fake_cuda_call_count("cuModuleLoadDataEx") == 1);
  CHECK(!contains(log(), "value=50000"));

  Plan other = sample_plan();
  other.images[0] = make_image("a cubin for sm_91");
  auto fourth = std::make_unique<Executor>(shared(other));
  CHECK(fake_cuda_live_modules() == 2);

  // Same hash, other bytes.
  auto forged = std::make_shared<Plan>(*shared(other));
  forged->images[0].hash = shared(sample_plan())->images[0].hash;
  auto fifth = std::make_unique<Executor>(forged);
  CHECK(fake_cuda_live_modules() == 3);

  second.reset();
  CHECK(fake_cuda_live_modules() == 3);  // `third` still uses it
  third.reset();
  CHECK(fake_cuda_live_modules() == 2);
  fourth.reset();
  fifth.reset();
  CHECK(fake_cuda_live_modules() == 0);
  Executor again(shared(sample_plan()));
  CHECK(fake_cuda_live_modules() == 1);
}

void test_two_contexts() {
  reset();
  void* const other = fake_cuda_create_context(8, 6);
  auto here = std::make_unique<Executor>(shared(sample_plan()));
  auto also_here = std::make_unique<Executor>(shared(sample_plan()));
  fake_cuda_set_current(other);
  auto there = std::make_unique<Executor>(shared(sample_plan()));
  CHECK(here->target() == "sm_90" && there->target() == "sm_80");
  CHECK(fake_cuda_live_modules() == 2);
  set_shapes(*here, 3, 100);
  set_shapes(*there, 3, 100);
  Tensors().enqueue(*there);
  CHECK_THROWS(PlanError, [&] { Tensors().enqueue(*here); }, "in another CUDA context", "other");
  fake_cuda_set_current(nullptr);
  CHECK_THROWS(PlanError, [&] { Tensors().enqueue(*here); }, "no CUDA context is current", "none");

  // Unloading makes the module's context current, and gives back what was before.
  fake_cuda_clear_log();
  there.reset();
  CHECK_CONTAINS(log(), "cuCtxGetId\ncuCtxPushCurrent_v2\ncuModuleUnload module=");
  CHECK_CONTAINS(log(), "cuCtxPopCurrent_v2\n");
  CHECK(!contains(log(), "->"));
  here.reset();
  CHECK(fake_cuda_live_modules() == 1);
  fake_cuda_set_current(fake_cuda_default_context());
  also_here.reset();
  CHECK(fake_cuda_live_modules() == 0);

  // The same image in a context of equal capability is another module.
  void* const twin = fake_cuda_create_context(9, 0);
  Executor in_default(shared(sample_plan()));
  fake_cuda_set_current(twin);
  Executor in_twin(shared(sample_plan()));
  CHECK(fake_cuda_live_modules() == 2);
}

// A context, or the whole driver, may be gone before the last module.
void test_late_unloading() {
  reset();
  void* const doomed = fake_cuda_create_context(9, 0);
  fake_cuda_set_current(doomed);
  auto executor = std::make_unique<Executor>(shared(sample_plan()));
  fake_cuda_destroy_context(doomed);
  executor.reset();
  CHECK(fake_cuda_call_count("cuModuleUnload") == 0);

  // Another context at the same address: the old one's handles mean nothing in it.
  reset();
  executor = std::make_unique<Executor>(shared(sample_plan()));
  fake_cuda_renew_context(fake_cuda_default_context());
  auto renewed = std::make_unique<Executor>(shared(sample_plan()));
  CHECK(fake_cuda_call_count("cuModuleLoadDataEx") == 2);
  executor.reset();
  CHECK(fake_cuda_call_count("cuModuleUnload") == 0);
  renewed.reset();
  CHECK(fake_cuda_call_count("cuModuleUnload") == 1);

  for (const char* const call : {"cuCtxGetId", "cuCtxPushCurrent_v2", "cuModuleUnload"}) {
    reset();
    executor = std::make_unique<Executor>(shared(sample_plan()));
    fake_cuda_fail_next(call, 4);
    executor.reset();
    CHECK_CONTAINS(log(), std::string(call));
    CHECK_CONTAINS(log(), "-> 4");
    CHECK(current_capability().major == 9);  // the context is current as before
  }
}

// Nothing is loaded during capture, and nothing allocated by enqueue.
void test_capture() {
  reset();
  Executor executor(shared(sample_plan()));
  set_shapes(executor, 3, 100);
  fake_cuda_set_capturing(1);
  Tensors().enqueue(executor);
  CHECK(fake_cuda_call_count("cuLaunchKernel") == 2);
  CHECK(!contains(log(), "->"));

  fake_cuda_set_recording(0);
  const Tensors tensors;
  const int before = allocation_count();
  tensors.enqueue(executor);
  const int made = allocation_count() - before;  // not within CHECK, which allocates
  CHECK(made == 0);
}

void test_workspace_size() {
  const Plan plan = sample_plan();
  const auto size = [](const Plan& of, std::int64_t batch, std::int64_t length) {
    return workspace_size(of, {{batch, length, 64}, {batch, length}}, {{batch, length, 64}});
  };
  CHECK(size(plan, 3, 100) == 1024 * 150);
  CHECK(size(plan, 3, 10) == 1024 * 15);  // the last bucket's: another variant might choose it

  // Short sequences may need more than long ones: counted as far as the bucket reaches.
  Plan hungry = plan;
  hungry.variants[1].buckets[0].workspace = scaled(1 << 20, 1);
  CHECK(size(hungry, 3, 10) == 10 << 20);
  CHECK(size(hungry, 3, 100) == 64 << 20);
  hungry.variants[1].buckets[0].ranges[0].min = 32;
  CHECK(size(hungry, 3, 31) == 1024 * 47);
  CHECK(size(hungry, 3, 32) == 32 << 20);

  // One that shrinks is largest at the smallest shapes of its bucket.
  Plan shrinking = plan;
  shrinking.variants[1].buckets[0].ranges[0].min = 16;
  shrinking.variants[1].buckets[0].workspace =
      Quantity{{Term{1 << 20, {}}, Term{-(1 << 10), {Ceil{1, 1}}}}};
  CHECK(size(shrinking, 3, 100) == (1 << 20) - 16 * (1 << 10));
  CHECK_THROWS(PlanError, [&] { size(plan, 4097, 100); }, "was made for", "check");
}

// Executors of one plan in several threads at once.
void test_threads() {
  reset();
  const std::shared_ptr<const Plan> plan = shared(sample_plan());
  const int before = fake_cuda_live_modules();
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&plan] {
      for (int round = 0; round < 50; ++round) {
        Executor executor(plan);
        set_shapes(executor, 3, 100);
        Tensors().enqueue(executor);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(fake_cuda_call_count("cuLaunchKernel") == 4 * 50 * 2);
  CHECK(fake_cuda_live_modules() == before);
  CHECK(!contains(log(), "->"));
}

}  // namespace
}  // namespace tests
}  // namespace stof

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s FAKE_CUDA_LIBRARY\n", argv[0]);
    return 2;
  }
  using namespace stof::tests;
  test_no_driver(argv[1]);
  test_capability();
  test_launches();
  test_variants();
  test_empty_grid();
  test_bad_shapes();
  test_bad_enqueues();
  test_failing_constructor();
  test_shared_modules();
  test_two_contexts();
  test_late_unloading();
  test_capture();
  test_workspace_size();
  test_threads();
  return failures() == 0 ? 0 : 1;
}
