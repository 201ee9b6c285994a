// The plan reader and what plans say about shapes and devices.
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "checks.h"
#include "plan/plan.h"
#include "plan_writer.h"

namespace stof {
namespace tests {
namespace {

constexpr std::int64_t kMax = std::numeric_limits<std::int64_t>::max();
constexpr std::int64_t kMin = std::numeric_limits<std::int64_t>::min();

Plan reread(const Plan& plan) {
  const Bytes bytes = write_plan(plan);
  return read_plan(bytes.data(), bytes.size());
}

// Everything that is written comes back: the records are compared by writing them again.
void test_round_trip() {
  const Plan plan = sample_plan();
  const Plan read = reread(plan);
  CHECK(write_payload(read) == write_payload(plan));
  CHECK(read.op == "StofMaskedAttention");
  CHECK(read.types == std::vector<std::uint32_t>({1, 3, 1}));
  CHECK(read.images[0].data.size() == std::strlen("a cubin for sm_90") + 1);
  CHECK(read.images[0].data.back() == 0);
  CHECK(read.images[0].hash != read.images[1].hash);
  CHECK(read.images[0].hash == reread(plan).images[0].hash);
  const Launch& split = read.variants[1].buckets[1].launches[0];
  CHECK(split.block[0] == 128 && split.block[1] == 2 && split.block[2] == 1);
  CHECK(split.arguments[0].offset == 32 && split.arguments[0].alignment == 16);
  CHECK(split.arguments[3].quantity.terms[0].factor == -3);
  CHECK(split.arguments[5].value == 0.5F);
}

struct BadPlan {
  const char* name;
  std::function<void(Plan&)> spoil;
  const char* message;  // nullptr: a neighbour of a bad plan that is sound
};

Launch& a_launch(Plan& plan) { return plan.variants[1].buckets[1].launches[0]; }
Kernel& a_kernel(Plan& plan) { return plan.variants[1].kernels[1]; }

std::vector<BadPlan> bad_names_and_tensors() {
  return {
      {"operator empty", [](Plan& p) { p.op = ""; }, "operator's name is empty"},
      {"operator with NUL", [](Plan& p) { p.op = std::string("a\0b", 3); }, "printable ASCII"},
      {"operator with a newline", [](Plan& p) { p.op = "a\n"; }, "printable ASCII"},
      {"operator with 0x7F", [](Plan& p) { p.op = "\x7F"; }, "printable ASCII"},
      {"operator with 0x7E", [](Plan& p) { p.op = " ~"; }, nullptr},
      {"producer empty", [](Plan& p) { p.producer = ""; }, "producer is empty"},
      {"no outputs", [](Plan& p) { p.outputs = 0; }, "no outputs"},
      {"a type less", [](Plan& p) { p.types.pop_back(); }, "2 types for 3 tensors"},
      {"a type more", [](Plan& p) { p.types.push_back(0); }, "4 types for 3 tensors"},
      {"type INT64", [](Plan& p) { p.types[0] = 8; }, nullptr},
      {"type 9", [](Plan& p) { p.types[0] = 9; }, "type 9 is unknown"},
      {"too many inputs", [](Plan& p) { p.inputs = 0xFFFFFFFFU; }, "types for 4294967296"},
      {"symbol unnamed", [](Plan& p) { p.symbols[0].name = ""; }, "name is empty"},
      {"symbols of one name", [](Plan& p) { p.symbols[1].name = "B"; }, "symbols are named B"},
      {"symbol's source", [](Plan& p) { p.symbols[0].source = TensorSource{2}; }, "source 2"},
      {"symbol's input", [](Plan& p) { p.symbols[0].tensor = 2; }, "input 2 doesn't exist"},
      {"symbol's output", [](Plan& p) { p.symbols[2].tensor = 1; }, "output 1 doesn't exist"},
      {"axis 7", [](Plan& p) { p.symbols[0].axes = {7}; }, nullptr},
      {"axis 8", [](Plan& p) { p.symbols[0].axes = {8}; }, "axis 8 doesn't exist"},
      {"no axes", [](Plan& p) { p.symbols[0].axes = {}; }, "symbol B has no axes"},
      {"check's symbol", [](Plan& p) { p.checks[0].symbol = 4; }, "symbol 4 doesn't exist"},
      {"check empty", [](Plan& p) { p.checks[0] = Check{0, 2, 1}; }, "range 2 ... 1 is empty"},
      {"check of one value", [](Plan& p) { p.checks[0] = Check{0, 2, 2}; }, nullptr},
      {"cover's symbol", [](Plan& p) { p.covers[0].symbol = 4; }, "symbol 4 doesn't exist"},
      {"cover's length", [](Plan& p) { p.covers[0].length = scaled(1, 4); }, "symbol 4 doesn't"},
      {"cover's divisor", [](Plan& p) { p.covers[0].length = scaled(1, 0, 0); }, "divisor 0"},
      {"cover of a constant", [](Plan& p) { p.covers[0].length = constant(12); }, nullptr},
      {"no covers", [](Plan& p) { p.covers.clear(); }, nullptr},
      {"image empty", [](Plan& p) { p.images[0] = make_image(""); }, "an image is empty"},
  };
}

std::vector<BadPlan> bad_variants() {
  return {
      {"no variants", [](Plan& p) { p.variants.clear(); }, "no variants"},
      {"target unnamed", [](Plan& p) { p.variants[0].target = ""; }, "target is empty"},
      {"targets of one name", [](Plan& p) { p.variants[0].target = "sm_90"; }, "named sm_90"},
      {"match", [](Plan& p) { p.variants[0].match = Match{3}; }, "match 3 is unknown"},
      {"template unnamed", [](Plan& p) { a_kernel(p).template_name = ""; }, "template is empty"},
      {"entry unnamed", [](Plan& p) { a_kernel(p).entry = ""; }, "entry is empty"},
      {"kernel's kind", [](Plan& p) { a_kernel(p).kind = ImageKind{2}; }, "kind 2 is unknown"},
      {"kernel's image", [](Plan& p) { a_kernel(p).image = 2; }, "image 2 doesn't exist"},
      {"no buckets", [](Plan& p) { p.variants[0].buckets.clear(); }, "sm_80 has no buckets"},
      {"last bucket for some shapes",
       [](Plan& p) { p.variants[1].buckets.back().ranges = {Range{0, 0, 1}}; }, "and no other"},
      {"first bucket for all shapes", [](Plan& p) { p.variants[1].buckets.front().ranges.clear(); },
       "and no other"},
      {"range's symbol", [](Plan& p) { p.variants[1].buckets[0].ranges[0].symbol = 4; },
       "symbol 4 doesn't exist"},
      {"range empty", [](Plan& p) { p.variants[1].buckets[0].ranges[0].min = 65; },
       "range 65 ... 64 is empty"},
      {"tactic empty", [](Plan& p) { p.variants[0].buckets[0].tactic = ""; }, nullptr},
      {"no launches", [](Plan& p) { p.variants[0].buckets[0].launches.clear(); }, "no launches"},
  };
}

std::vector<BadPlan> bad_launches() {
  return {
      {"launch's kernel", [](Plan& p) { a_launch(p).kernel = 2; }, "kernel 2 doesn't exist"},
      {"block of 1024", [](Plan& p) { a_launch(p).block[1] = 8; }, nullptr},
      {"block too large", [](Plan& p) { a_launch(p).block[1] = 9; }, "128 x 9 x 1 threads"},
      {"block that overflows",
       [](Plan& p) {
         for (std::uint32_t& size : a_launch(p).block) size = 0x80000000U;
       },
       "threads"},
      {"block of 0", [](Plan& p) { a_launch(p).block[2] = 0; }, "128 x 2 x 0 threads"},
      {"divisor 0", [](Plan& p) { a_launch(p).grid[0] = scaled(1, 0, 0); }, "divisor 0"},
      {"divisor -1", [](Plan& p) { a_launch(p).grid[0] = scaled(1, 0, -1); }, "divisor -1"},
      {"quantity's symbol", [](Plan& p) { a_launch(p).shared = scaled(1, 4); }, "symbol 4"},
      {"argument's kind", [](Plan& p) { a_launch(p).arguments[0].kind = ArgumentKind{6}; },
       "kind 6 is unknown"},
      {"argument's input", [](Plan& p) { a_launch(p).arguments[0].tensor = 2; }, "input 2"},
      {"argument's output",
       [](Plan& p) { a_launch(p).arguments[0] = Argument{ArgumentKind::kOutput, 1, 0, 1, {}, 0}; },
       "output 1 doesn't exist"},
      {"negative offset", [](Plan& p) { a_launch(p).arguments[0].offset = -1; }, "points before"},
      {"alignment 0", [](Plan& p) { a_launch(p).arguments[0].alignment = 0; }, "alignment 0"},
      {"alignment 24", [](Plan& p) { a_launch(p).arguments[2].alignment = 24; }, "alignment 24"},
      {"alignment 2^31", [](Plan& p) { a_launch(p).arguments[0].alignment = 1U << 31; }, nullptr},
      {"NaN", [](Plan& p) { a_launch(p).arguments[5].value = std::nanf(""); }, "not a number"},
      {"infinity", [](Plan& p) { a_launch(p).arguments[5].value = -HUGE_VALF; }, nullptr},
  };
}

void test_bad_records() {
  for (const auto& cases : {bad_names_and_tensors(), bad_variants(), bad_launches()}) {
    for (const BadPlan& bad : cases) {
      Plan plan = sample_plan();
      bad.spoil(plan);
      if (bad.message != nullptr) {
        CHECK_THROWS(PlanError, [&] { reread(plan); }, bad.message, bad.name);
      } else {
        check(write_payload(reread(plan)) == write_payload(plan), bad.name, __FILE__, __LINE__);
      }
    }
  }
}

void test_bad_envelope() {
  struct BadEnvelope {
    const char* name;
    std::function<void(Bytes&)> spoil;
    const char* message;
  };
  const std::vector<BadEnvelope> cases = {
      {"magic", [](Bytes& b) { b[7] = 'M'; }, "not a plan"},
      {"nothing", [](Bytes& b) { b.clear(); }, "not a plan"},
      {"part of the magic", [](Bytes& b) { b.resize(7); }, "not a plan"},
      {"part of the envelope", [](Bytes& b) { b.resize(31); }, "first 32 bytes"},
      {"version 2", [](Bytes& b) { b[8] = 2; }, "format version 2, this library reads version 1"},
      {"compression", [](Bytes& b) { b[12] = 0; }, "compression 0 is unknown"},
      {"size above 2^30", [](Bytes& b) { b[20] = 1; }, "can't have a payload of"},
      {"size above DEFLATE's ratio", [](Bytes& b) { b[19] = 0x3F; }, "can't have a payload of"},
      {"size too large", [](Bytes& b) { ++b[16]; }, "fewer bytes"},
      {"size too small", [](Bytes& b) { --b[16]; }, "more bytes"},
      {"CRC", [](Bytes& b) { b[24] ^= 1; }, "CRC is wrong"},
      {"reserved", [](Bytes& b) { b[31] = 1; }, "reserved field"},
      {"content", [](Bytes& b) { b[60] ^= 1; }, "CRC is wrong"},
      {"bytes behind", [](Bytes& b) { b.push_back(0); }, "bytes behind"},
  };
  for (const BadEnvelope& bad : cases) {
    Bytes bytes = write_plan(sample_plan());
    bad.spoil(bytes);
    CHECK_THROWS(PlanError, [&] { read_plan(bytes.data(), bytes.size()); }, bad.message, bad.name);
  }
  CHECK_THROWS(PlanError, [] { read_plan(nullptr, 0); }, "not a plan", "no data");
}

// A payload that ends anywhere, or goes on, is refused, and so is one whose list is longer than the
// payload: before memory is reserved for it.
void test_bad_payload() {
  const Bytes payload = write_payload(sample_plan());
  for (std::size_t size = 0; size < payload.size(); ++size) {
    const Bytes cut(payload.begin(), payload.begin() + static_cast<std::ptrdiff_t>(size));
    const Bytes bytes = write_envelope(cut);
    CHECK_THROWS(
        PlanError, [&] { read_plan(bytes.data(), bytes.size()); }, "malformed",
        "cut at " + std::to_string(size));
  }
  Bytes longer = payload;
  longer.push_back(0);
  const Bytes bytes = write_envelope(longer);
  CHECK_THROWS(PlanError, [&] { read_plan(bytes.data(), bytes.size()); }, "bytes follow", "longer");

  Bytes huge;
  append_u32(huge, 0xFFFFFFFFU);
  const Bytes huge_bytes = write_envelope(huge);
  CHECK_THROWS(
      PlanError, [&] { read_plan(huge_bytes.data(), huge_bytes.size()); }, "has length 4294967295",
      "huge string");

  // As many symbols as bytes follow: a symbol takes more than one.
  Plan plan = sample_plan();
  plan.symbols.clear();
  Bytes many = write_payload(plan);
  const std::size_t at = 4 + plan.op.size() + 4 + plan.producer.size() + 4 + 4 + 4 + 3 * 4;
  CHECK(many[at] == 0);
  many.resize(at + 4 + 200);
  many[at] = 200;
  const Bytes many_bytes = write_envelope(many);
  CHECK_THROWS(
      PlanError, [&] { read_plan(many_bytes.data(), many_bytes.size()); },
      "symbols has length 200, but only 200 bytes follow", "symbols of a byte");
}

// Changed payloads under a right CRC: read or refused, never a crash. What is read is used, too.
void test_random_payloads() {
  const Bytes payload = write_payload(sample_plan());
  std::mt19937 random(2);
  int refused = 0;
  int read = 0;
  for (int round = 0; round < 20000; ++round) {
    Bytes changed = payload;
    for (std::size_t changes = 1 + random() % 4; changes > 0; --changes) {
      const std::size_t at = random() % changed.size();
      // Small values make indices and counts that are nearly right.
      changed[at] = static_cast<std::uint8_t>(random() % 2 == 0 ? random() % 5 : random());
    }
    const Bytes bytes = write_envelope(changed);
    try {
      const Plan plan = read_plan(bytes.data(), bytes.size());
      ++read;
      find_variant(plan, 9, 0);
      const auto symbols = evaluate_symbols(plan, {{2, 100, 64}, {2, 100}}, {{2, 100, 64}});
      for (const Variant& variant : plan.variants) {
        const Bucket& bucket = find_bucket(variant, symbols);
        evaluate(bucket.workspace, symbols);
        for (const Launch& launch : bucket.launches) evaluate(launch.shared, symbols);
      }
    } catch (const PlanError&) {
      ++refused;
    }
  }
  CHECK(refused > 1000);
  CHECK(read > 1000);
}

// A file with any one bit changed is refused, but for bits that DEFLATE ignores: those between the
// header of the stored block, 3 bits at byte 32, and its length at byte 33.
void test_changed_files() {
  const Bytes plan = write_plan(sample_plan());
  for (std::size_t bit = 0; bit < plan.size() * 8; ++bit) {
    if (bit >= 32 * 8 + 3 && bit < 33 * 8) continue;
    Bytes changed = plan;
    changed[bit / 8] = static_cast<std::uint8_t>(changed[bit / 8] ^ (1U << (bit % 8)));
    CHECK_THROWS(
        PlanError, [&] { read_plan(changed.data(), changed.size()); }, "plan",
        "bit " + std::to_string(bit));
  }
}

void test_symbols() {
  const Plan plan = sample_plan();
  const auto symbols = evaluate_symbols(plan, {{2, 100, 64}, {2, 101}}, {{2, 100, 64}});
  CHECK(symbols == std::vector<std::int64_t>({2, 101, 200, 2}));
  using Shapes = std::vector<Dimensions>;
  struct BadShapes {
    const char* name;
    Shapes inputs;
    Shapes outputs;
    const char* message;
  };
  const std::vector<BadShapes> cases = {
      {"an input less", {{2, 100, 64}}, {{2, 100, 64}}, "1 inputs, its plan was made for 2"},
      {"an output more", {{2}, {2, 1}}, {{2, 1}, {2}}, "2 outputs, its plan was made for 1"},
      {"rank", {{2, 100}, {2}}, {{2, 100, 64}}, "symbol S (input 1) needs axis 1"},
      {"unknown", {{2, 1}, {2, -1}}, {{2, 1}}, "axis 1 has size -1"},
      {"overflow", {{2, 1}, {2, 1}}, {{kMax, 2}}, "symbol tokens (output 0) is larger"},
      {"check",
       {{4097, 1}, {2, 1}},
       {{2, 1}},
       "is 4097, the plan of StofMaskedAttention was "
       "made for 0 ... 4096"},
  };
  for (const BadShapes& bad : cases) {
    CHECK_THROWS(
        PlanError, [&] { evaluate_symbols(plan, bad.inputs, bad.outputs); }, bad.message, bad.name);
  }
  CHECK(evaluate_symbols(plan, {{4096}, {4096, 0}}, {{0, 5}})[0] == 4096);
  Plan single = plan;
  single.checks = {Check{1, 64, 64}};
  CHECK_THROWS(
      PlanError, [&] { evaluate_symbols(single, {{1}, {1, 65}}, {{1, 1}}); }, "made for 64;",
      "one value wanted");
}

// A size that covers a length: 1, or as long, or longer.
void test_covers() {
  struct Size {
    std::int64_t size;
    std::int64_t length;
    bool fits;
  };
  const std::vector<Size> sizes = {
      {20, 20, true}, {21, 20, true}, {1, 20, true}, {19, 20, false},    {2, 20, false},
      {0, 20, false}, {0, 1, false},  {0, 0, true},  {1, 0, true},       {5, 0, true},
      {1, 1, true},   {2, 1, true},   {1, 2, true},  {4095, 4096, false}};
  const Plan plan = sample_plan();
  for (const Size& one : sizes) {
    const auto evaluated = [&] { evaluate_symbols(plan, {{one.length}, {one.size, 1}}, {{1, 1}}); };
    const std::string name = std::to_string(one.size) + " for " + std::to_string(one.length);
    if (one.fits) {
      evaluated();
    } else {
      CHECK_THROWS(PlanError, evaluated, "symbol rows (input 1) is " + std::to_string(one.size),
                   name);
      CHECK_THROWS(PlanError, evaluated, "1 or at least B = " + std::to_string(one.length), name);
    }
  }
  const auto message = [&](const Quantity& length) {
    Plan other = plan;
    other.covers = {Cover{3, length}};
    return message_of<PlanError>([&] { evaluate_symbols(other, {{7}, {2, 100}}, {{2, 3}}); },
                                 "cover", __FILE__, __LINE__);
  };
  CHECK(message(constant(12)) ==
        "symbol rows (input 1) is 2, StofMaskedAttention wants 1 or at least 12; give the node "
        "inputs whose sizes fit each other");
  CHECK_CONTAINS(message(scaled(1, 0)), "wants 1 or at least B = 7; give");
  CHECK_CONTAINS(message(Quantity{{Term{4, {Ceil{0, 1}, Ceil{1, 64}}}, Term{3, {}}}}),
                 "at least 4 * B * ceil(S/64) + 3 = 59; give");
  CHECK_CONTAINS(message(scaled(kMax, 0)), "larger than 2^63 - 1");
}

void test_quantities() {
  const std::vector<std::int64_t> symbols = {7, 0, kMax};
  CHECK(evaluate(Quantity{}, symbols) == 0);
  CHECK(evaluate(scaled(3, 0, 2), symbols) == 12);
  CHECK(evaluate(scaled(3, 0, 7), symbols) == 3);
  CHECK(evaluate(scaled(3, 1, 7), symbols) == 0);
  CHECK(evaluate(scaled(1, 2, kMax), symbols) == 1);
  CHECK(evaluate(scaled(1, 2, 2), symbols) == kMax / 2 + 1);
  CHECK(evaluate(Quantity{{Term{2, {Ceil{0, 1}, Ceil{0, 3}}}, Term{-5, {}}}}, symbols) == 37);
  CHECK(evaluate(scaled(-1, 2), symbols) == -kMax);
  CHECK(evaluate(constant(kMin), symbols) == kMin);
  const std::vector<Quantity> too_large = {
      scaled(2, 2),
      Quantity{{Term{1, {Ceil{2, 1}}}, Term{1, {}}}},
      Quantity{{Term{kMin, {}}, Term{-1, {}}}},
      Quantity{{Term{2, {Ceil{2, 1}, Ceil{1, 1}}}}},  // whatever comes after the overflow
  };
  for (const Quantity& quantity : too_large) {
    CHECK_THROWS(PlanError, [&] { evaluate(quantity, symbols); }, "larger than", "overflow");
  }
}

void test_variants() {
  struct Choice {
    std::uint32_t major;
    std::uint32_t minor;
    const char* wanted;  // "": none
  };
  Plan plan;
  plan.op = "StofMaskedAttention";
  const auto variant = [](const char* target, std::uint32_t major, std::uint32_t minor,
                          Match match) { return Variant{target, major, minor, match, {}, {}}; };
  plan.variants = {
      variant("7.5 newer", 7, 5, Match::kNewer), variant("8.0 newer", 8, 0, Match::kNewer),
      variant("8.0 minor", 8, 0, Match::kMinor), variant("8.6 minor", 8, 6, Match::kMinor),
      variant("8.6 again", 8, 6, Match::kMinor), variant("8.9 newer", 8, 9, Match::kNewer),
      variant("9.0 exact", 9, 0, Match::kExact)};
  const std::vector<Choice> choices = {
      {7, 0, ""},          {7, 5, "7.5 newer"}, {8, 0, "8.0 minor"},
      {8, 5, "8.0 minor"}, {8, 6, "8.6 minor"}, {8, 9, "8.6 minor"},
      {9, 0, "9.0 exact"}, {9, 1, "8.9 newer"}, {10, 0, "8.9 newer"}};
  for (const Choice& choice : choices) {
    const Variant* const found = find_variant(plan, choice.major, choice.minor);
    check((found != nullptr ? found->target : "") == choice.wanted,
          std::string("wanted: ") + choice.wanted, __FILE__, __LINE__);
  }
  plan.variants.resize(2);
  CHECK(describe_targets(plan) == "7.5 newer, 8.0 newer");
  CHECK(&require_variant(plan, 8, 6) == &plan.variants[1]);
  const auto require = [&] { require_variant(plan, 7, 2); };
  CHECK_THROWS(PlanError, require, "compute capability 7.2", "the device");
  CHECK_THROWS(PlanError, require, "only for 7.5 newer, 8.0 newer", "the targets");
  CHECK_THROWS(PlanError, require, "--target sm_72", "the remedy");
}

void test_buckets() {
  Variant variant = sample_plan().variants[1];
  variant.buckets[0].ranges.push_back(Range{0, 2, 3});
  const auto is_first = [&](std::int64_t batch, std::int64_t length) {
    return &find_bucket(variant, {batch, length, 0}) == &variant.buckets[0];
  };
  CHECK(is_first(2, 64) && is_first(3, 0));
  CHECK(!is_first(2, 65) && !is_first(1, 64) && !is_first(4, 64));
}

}  // namespace
}  // namespace tests
}  // namespace stof

int main() {
  stof::tests::test_round_trip();
  stof::tests::test_bad_records();
  stof::tests::test_bad_envelope();
  stof::tests::test_bad_payload();
  stof::tests::test_random_payloads();
  stof::tests::test_changed_files();
  stof::tests::test_symbols();
  stof::tests::test_covers();
  stof::tests::test_quantities();
  stof::tests::test_variants();
  stof::tests::test_buckets();
  return stof::tests::failures() == 0 ? 0 : 1;
}
