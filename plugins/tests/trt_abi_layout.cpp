// Built where CMake has STOF_TENSORRT_INCLUDE_DIR: compares our declaration of TensorRT's plugin
// interface with NVIDIA's. Sizes, offsets, enumerators, and the virtual table's slot of every
// function, which in the Itanium C++ ABI is what a pointer to a virtual member function holds.
// Exits 0 if all agree.
#include <NvInferRuntime.h>

#include <cstddef>
#include <cstdio>
#include <cstring>
#include <type_traits>

#include "abi/tensorrt_versions.h"

// Our declaration, beside NVIDIA's.
#define STOF_ABI_NAMESPACE stof_nvinfer1
#include "abi/tensorrt_abi.h"

namespace ours = stof_nvinfer1;
namespace theirs = nvinfer1;
#if NV_TENSORRT_MAJOR == 10
namespace versioned = stof::abi::v10;
#else
namespace versioned = stof::abi::v11;
#endif

namespace {

int failures = 0;
int compared = 0;

void expect_equal(const char* what, long long our_value, long long their_value) {
  ++compared;
  if (our_value == their_value) return;
  ++failures;
  std::fprintf(stderr, "%s: ours is %lld, TensorRT %d has %lld\n", what, our_value,
               NV_TENSORRT_MAJOR, their_value);
}

// First word of a pointer to a virtual member: its slot, up to a factor and a constant.
template <typename Member>
long long slot(Member member) {
  static_assert(std::is_member_function_pointer_v<Member>);
  long long words[2];
  static_assert(sizeof member == sizeof words, "Itanium C++ ABI only");
  std::memcpy(words, &member, sizeof words);
  return words[0];
}

#define SIZE(type) expect_equal("sizeof " #type, sizeof(ours::type), sizeof(theirs::type))
#define OFFSET(type, member)                                                  \
  expect_equal("offset of " #type "::" #member, offsetof(ours::type, member), \
               offsetof(theirs::type, member))
#define VALUE(type, name)                                                  \
  expect_equal(#type "::" #name, static_cast<long long>(ours::type::name), \
               static_cast<long long>(theirs::type::name))
#define SLOT(type, function)                                                 \
  expect_equal("slot of " #type "::" #function, slot(&ours::type::function), \
               slot(&theirs::type::function))
#define VERSIONED_SLOT(our_type, our_function, type, function)                            \
  expect_equal("slot of " #type "::" #function, slot(&versioned::our_type::our_function), \
               slot(&theirs::type::function))

template <typename Info>
void expect_info(const char* what, const Info& our_info, const theirs::InterfaceInfo& their_info) {
  expect_equal(what, std::strcmp(our_info.kind, their_info.kind), 0);
  expect_equal(what, our_info.major, their_info.major);
  expect_equal(what, our_info.minor, their_info.minor);
}

void compare_structures() {
  SIZE(Dims64);
  OFFSET(Dims64, nbDims);
  OFFSET(Dims64, d);
  SIZE(PluginTensorDesc);
  OFFSET(PluginTensorDesc, dims);
  OFFSET(PluginTensorDesc, type);
  OFFSET(PluginTensorDesc, format);
  OFFSET(PluginTensorDesc, scale);
  SIZE(DynamicPluginTensorDesc);
  OFFSET(DynamicPluginTensorDesc, desc);
  OFFSET(DynamicPluginTensorDesc, min);
  OFFSET(DynamicPluginTensorDesc, max);
  OFFSET(DynamicPluginTensorDesc, opt);
  SIZE(DimsExprs);
  OFFSET(DimsExprs, nbDims);
  OFFSET(DimsExprs, d);
  SIZE(InterfaceInfo);
  OFFSET(InterfaceInfo, kind);
  OFFSET(InterfaceInfo, major);
  OFFSET(InterfaceInfo, minor);
  SIZE(PluginField);
  OFFSET(PluginField, name);
  OFFSET(PluginField, data);
  OFFSET(PluginField, type);
  OFFSET(PluginField, length);
  SIZE(PluginFieldCollection);
  OFFSET(PluginFieldCollection, nbFields);
  OFFSET(PluginFieldCollection, fields);
  SIZE(IDimensionExpr);
  SIZE(IExprBuilder);
  expect_equal("Dims64::MAX_DIMS", ours::Dims64::MAX_DIMS, theirs::Dims64::MAX_DIMS);
}

void compare_enumerators() {
  VALUE(DataType, kFLOAT);
  VALUE(DataType, kHALF);
  VALUE(DataType, kINT8);
  VALUE(DataType, kINT32);
  VALUE(DataType, kBOOL);
  VALUE(DataType, kUINT8);
  VALUE(DataType, kFP8);
  VALUE(DataType, kBF16);
  VALUE(DataType, kINT64);
  VALUE(DataType, kINT4);
  VALUE(DataType, kFP4);
  VALUE(DataType, kE8M0);
  VALUE(TensorFormat, kLINEAR);
  VALUE(TensorFormat, kCHW2);
  VALUE(TensorFormat, kHWC8);
  VALUE(TensorFormat, kCHW4);
  VALUE(TensorFormat, kCHW16);
  VALUE(TensorFormat, kCHW32);
  VALUE(TensorFormat, kDHWC8);
  VALUE(TensorFormat, kCDHW32);
  VALUE(TensorFormat, kHWC);
  VALUE(TensorFormat, kDLA_LINEAR);
  VALUE(TensorFormat, kDLA_HWC4);
  VALUE(TensorFormat, kHWC16);
  VALUE(TensorFormat, kDHWC);
  VALUE(DimensionOperation, kSUM);
  VALUE(DimensionOperation, kPROD);
  VALUE(DimensionOperation, kMAX);
  VALUE(DimensionOperation, kMIN);
  VALUE(DimensionOperation, kSUB);
  VALUE(DimensionOperation, kEQUAL);
  VALUE(DimensionOperation, kLESS);
  VALUE(DimensionOperation, kFLOOR_DIV);
  VALUE(DimensionOperation, kCEIL_DIV);
  VALUE(APILanguage, kCPP);
  VALUE(APILanguage, kPYTHON);
  VALUE(TensorRTPhase, kBUILD);
  VALUE(TensorRTPhase, kRUNTIME);
  VALUE(PluginCapabilityType, kCORE);
  VALUE(PluginCapabilityType, kBUILD);
  VALUE(PluginCapabilityType, kRUNTIME);
}

void compare_more_enumerators() {
  VALUE(PluginFieldType, kFLOAT16);
  VALUE(PluginFieldType, kFLOAT32);
  VALUE(PluginFieldType, kFLOAT64);
  VALUE(PluginFieldType, kINT8);
  VALUE(PluginFieldType, kINT16);
  VALUE(PluginFieldType, kINT32);
  VALUE(PluginFieldType, kCHAR);
  VALUE(PluginFieldType, kDIMS);
  VALUE(PluginFieldType, kUNKNOWN);
  VALUE(PluginFieldType, kBF16);
  VALUE(PluginFieldType, kINT64);
  VALUE(PluginFieldType, kFP8);
  VALUE(PluginFieldType, kINT4);
  VALUE(PluginFieldType, kFP4);
  VALUE(ErrorCode, kSUCCESS);
  VALUE(ErrorCode, kUNSPECIFIED_ERROR);
  VALUE(ErrorCode, kINTERNAL_ERROR);
  VALUE(ErrorCode, kINVALID_ARGUMENT);
  VALUE(ErrorCode, kINVALID_CONFIG);
  VALUE(ErrorCode, kFAILED_ALLOCATION);
  VALUE(ErrorCode, kFAILED_INITIALIZATION);
  VALUE(ErrorCode, kFAILED_EXECUTION);
  VALUE(ErrorCode, kFAILED_COMPUTATION);
  VALUE(ErrorCode, kINVALID_STATE);
  VALUE(ErrorCode, kUNSUPPORTED_STATE);
  using OurSeverity = stof::abi::Severity;
  using TheirSeverity = theirs::ILogger::Severity;
  expect_equal("Severity kINTERNAL_ERROR", static_cast<int>(OurSeverity::kInternalError),
               static_cast<int>(TheirSeverity::kINTERNAL_ERROR));
  expect_equal("Severity kERROR", static_cast<int>(OurSeverity::kError),
               static_cast<int>(TheirSeverity::kERROR));
  expect_equal("Severity kWARNING", static_cast<int>(OurSeverity::kWarning),
               static_cast<int>(TheirSeverity::kWARNING));
  expect_equal("Severity kINFO", static_cast<int>(OurSeverity::kInfo),
               static_cast<int>(TheirSeverity::kINFO));
  expect_equal("Severity kVERBOSE", static_cast<int>(OurSeverity::kVerbose),
               static_cast<int>(TheirSeverity::kVERBOSE));
}

void compare_plugin_interfaces() {
  SLOT(IVersionedInterface, getAPILanguage);
  SLOT(IVersionedInterface, getInterfaceInfo);
  SLOT(IPluginV3, getCapabilityInterface);
  SLOT(IPluginV3, clone);
  SLOT(IPluginV3OneCore, getPluginName);
  SLOT(IPluginV3OneCore, getPluginVersion);
  SLOT(IPluginV3OneCore, getPluginNamespace);
  SLOT(IPluginV3OneBuild, configurePlugin);
  SLOT(IPluginV3OneBuild, getOutputDataTypes);
  SLOT(IPluginV3OneBuild, getOutputShapes);
  SLOT(IPluginV3OneBuild, supportsFormatCombination);
  SLOT(IPluginV3OneBuild, getNbOutputs);
  SLOT(IPluginV3OneBuild, getWorkspaceSize);
  SLOT(IPluginV3OneBuild, getValidTactics);
  SLOT(IPluginV3OneBuild, getNbTactics);
  SLOT(IPluginV3OneBuild, getTimingCacheID);
  SLOT(IPluginV3OneBuild, getFormatCombinationLimit);
  SLOT(IPluginV3OneBuild, getMetadataString);
  SLOT(IPluginV3OneRuntime, setTactic);
  SLOT(IPluginV3OneRuntime, onShapeChange);
  SLOT(IPluginV3OneRuntime, enqueue);
  SLOT(IPluginV3OneRuntime, attachToContext);
  SLOT(IPluginV3OneRuntime, getFieldsToSerialize);
  SLOT(IPluginCreatorV3One, createPlugin);
  SLOT(IPluginCreatorV3One, getFieldNames);
  SLOT(IPluginCreatorV3One, getPluginName);
  SLOT(IPluginCreatorV3One, getPluginVersion);
  SLOT(IPluginCreatorV3One, getPluginNamespace);
  SLOT(IPluginResourceContext, getGpuAllocator);
  SLOT(IPluginResourceContext, getErrorRecorder);
  SLOT(IErrorRecorder, getNbErrors);
  SLOT(IErrorRecorder, getErrorCode);
  SLOT(IErrorRecorder, getErrorDesc);
  SLOT(IErrorRecorder, hasOverflowed);
  SLOT(IErrorRecorder, clear);
  SLOT(IErrorRecorder, reportError);
  SLOT(IErrorRecorder, incRefCount);
  SLOT(IErrorRecorder, decRefCount);
  SLOT(apiv::VDimensionExpr, isConstant);
  SLOT(apiv::VDimensionExpr, getConstantValue);
  SLOT(apiv::VDimensionExpr, isSizeTensor);
  SLOT(apiv::VExprBuilder, constant);
  SLOT(apiv::VExprBuilder, operation);
  SLOT(apiv::VExprBuilder, declareSizeTensor);
}

// Where the forwarding classes keep their implementation: a subclass may look.
template <typename Expression>
class Peek : public Expression {
 public:
  Peek() { this->mImpl = nullptr; }
  ~Peek() noexcept override = default;
  long long offset() const {
    return reinterpret_cast<const char*>(&this->mImpl) - reinterpret_cast<const char*>(this);
  }
};

void compare_expressions() {
  expect_equal("offset of IDimensionExpr::mImpl", Peek<ours::IDimensionExpr>().offset(),
               Peek<theirs::IDimensionExpr>().offset());
  expect_equal("offset of IExprBuilder::mImpl", Peek<ours::IExprBuilder>().offset(),
               Peek<theirs::IExprBuilder>().offset());
}

void compare_versioned_interfaces() {
  VERSIONED_SLOT(Logger, log, ILogger, log);
  VERSIONED_SLOT(LoggerFinder, findLogger, ILoggerFinder, findLogger);
  VERSIONED_SLOT(PluginRegistry, setErrorRecorder, IPluginRegistry, setErrorRecorder);
  VERSIONED_SLOT(PluginRegistry, getErrorRecorder, IPluginRegistry, getErrorRecorder);
  VERSIONED_SLOT(PluginRegistry, isParentSearchEnabled, IPluginRegistry, isParentSearchEnabled);
  VERSIONED_SLOT(PluginRegistry, setParentSearchEnabled, IPluginRegistry, setParentSearchEnabled);
  VERSIONED_SLOT(PluginRegistry, loadLibrary, IPluginRegistry, loadLibrary);
  VERSIONED_SLOT(PluginRegistry, deregisterLibrary, IPluginRegistry, deregisterLibrary);
  VERSIONED_SLOT(PluginRegistry, getAllCreators, IPluginRegistry, getAllCreators);
  VERSIONED_SLOT(PluginRegistry, getCreator, IPluginRegistry, getCreator);
  using Register = bool (theirs::IPluginRegistry::*)(theirs::IPluginCreatorInterface&,
                                                     theirs::AsciiChar const*) noexcept;
  expect_equal("slot of IPluginRegistry::registerCreator",
               slot(&versioned::PluginRegistry::registerCreator),
               slot(static_cast<Register>(&theirs::IPluginRegistry::registerCreator)));
}

// The smallest classes that can be made, to ask each interface for its kind and version.
template <typename Plugin, typename Capability, typename Type>
class MinimalPlugin final : public Plugin {
 public:
  Capability* getCapabilityInterface(Type) noexcept override { return nullptr; }
  Plugin* clone() noexcept override { return nullptr; }
};

template <typename Core>
class MinimalCore final : public Core {
 public:
  const char* getPluginName() const noexcept override { return ""; }
  const char* getPluginVersion() const noexcept override { return ""; }
  const char* getPluginNamespace() const noexcept override { return ""; }
};

template <typename Creator, typename Plugin, typename Fields, typename Phase>
class MinimalCreator final : public Creator {
 public:
  Plugin* createPlugin(const char*, const Fields*, Phase) noexcept override { return nullptr; }
  const Fields* getFieldNames() noexcept override { return nullptr; }
  const char* getPluginName() const noexcept override { return ""; }
  const char* getPluginVersion() const noexcept override { return ""; }
  const char* getPluginNamespace() const noexcept override { return ""; }
};

// The same text makes the class in both namespaces.
#define MINIMAL_BUILD_AND_RUNTIME(prefix, ns)                                                      \
  class prefix##Build final : public ns::IPluginV3OneBuild {                                       \
   public:                                                                                         \
    std::int32_t configurePlugin(const ns::DynamicPluginTensorDesc*, std::int32_t,                 \
                                 const ns::DynamicPluginTensorDesc*,                               \
                                 std::int32_t) noexcept override {                                 \
      return 0;                                                                                    \
    }                                                                                              \
    std::int32_t getOutputDataTypes(ns::DataType*, std::int32_t, const ns::DataType*,              \
                                    std::int32_t) const noexcept override {                        \
      return 0;                                                                                    \
    }                                                                                              \
    std::int32_t getOutputShapes(const ns::DimsExprs*, std::int32_t, const ns::DimsExprs*,         \
                                 std::int32_t, ns::DimsExprs*, std::int32_t,                       \
                                 ns::IExprBuilder&) noexcept override {                            \
      return 0;                                                                                    \
    }                                                                                              \
    bool supportsFormatCombination(std::int32_t, const ns::DynamicPluginTensorDesc*, std::int32_t, \
                                   std::int32_t) noexcept override {                               \
      return false;                                                                                \
    }                                                                                              \
    std::int32_t getNbOutputs() const noexcept override { return 0; }                              \
  };                                                                                               \
  class prefix##Runtime final : public ns::IPluginV3OneRuntime {                                   \
   public:                                                                                         \
    std::int32_t onShapeChange(const ns::PluginTensorDesc*, std::int32_t,                          \
                               const ns::PluginTensorDesc*, std::int32_t) noexcept override {      \
      return 0;                                                                                    \
    }                                                                                              \
    std::int32_t enqueue(const ns::PluginTensorDesc*, const ns::PluginTensorDesc*,                 \
                         const void* const*, void* const*, void*,                                  \
                         cudaStream_t) noexcept override {                                         \
      return 0;                                                                                    \
    }                                                                                              \
    ns::IPluginV3* attachToContext(ns::IPluginResourceContext*) noexcept override {                \
      return nullptr;                                                                              \
    }                                                                                              \
    const ns::PluginFieldCollection* getFieldsToSerialize() noexcept override { return nullptr; }  \
  }

MINIMAL_BUILD_AND_RUNTIME(Our, ours);
MINIMAL_BUILD_AND_RUNTIME(Their, theirs);

#define COMPARE_INFO(type, our_class, their_class) \
  expect_info(type, our_class().getInterfaceInfo(), their_class().getInterfaceInfo())

void compare_kinds() {
  using OurPlugin =
      MinimalPlugin<ours::IPluginV3, ours::IPluginCapability, ours::PluginCapabilityType>;
  using TheirPlugin =
      MinimalPlugin<theirs::IPluginV3, theirs::IPluginCapability, theirs::PluginCapabilityType>;
  using OurCreator = MinimalCreator<ours::IPluginCreatorV3One, ours::IPluginV3,
                                    ours::PluginFieldCollection, ours::TensorRTPhase>;
  using TheirCreator = MinimalCreator<theirs::IPluginCreatorV3One, theirs::IPluginV3,
                                      theirs::PluginFieldCollection, theirs::TensorRTPhase>;
  COMPARE_INFO("IPluginV3", OurPlugin, TheirPlugin);
  COMPARE_INFO("IPluginV3OneCore", MinimalCore<ours::IPluginV3OneCore>,
               MinimalCore<theirs::IPluginV3OneCore>);
  COMPARE_INFO("IPluginCreatorV3One", OurCreator, TheirCreator);
  COMPARE_INFO("IPluginV3OneBuild", OurBuild, TheirBuild);
  COMPARE_INFO("IPluginV3OneRuntime", OurRuntime, TheirRuntime);
}

}  // namespace

int main() {
  compare_structures();
  compare_enumerators();
  compare_more_enumerators();
  compare_plugin_interfaces();
  compare_expressions();
  compare_versioned_interfaces();
  compare_kinds();
  std::printf("%d compared with TensorRT %d.%d, %d differ\n", compared, NV_TENSORRT_MAJOR,
              NV_TENSORRT_MINOR, failures);
  return failures == 0 ? 0 : 1;
}
