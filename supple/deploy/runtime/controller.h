// One way to run the policy: the generated C code, or onnxruntime.
#pragma once

#include <fstream>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "policy.h"
#include "sha256.h"

#ifdef SUPPLE_WITH_ONNXRUNTIME
#include <onnxruntime_cxx_api.h>
#endif

namespace supple {

class Controller {
 public:
  virtual ~Controller() = default;
  virtual void reset() = 0;
  // Fills the policy's own `action` and the `command`; false where a number was not finite.
  virtual bool step(const std::vector<float>& observation, std::vector<float>& action,
                    std::vector<float>& command) = 0;
};

class GeneratedController : public Controller {
 public:
  GeneratedController() { reset(); }
  void reset() override { supple_policy_reset(&state_); }
  bool step(const std::vector<float>& observation, std::vector<float>& action,
            std::vector<float>& command) override {
    return supple_policy_step(&state_, observation.data(), action.data(), command.data()) == 0;
  }

 private:
  supple_policy_state state_;
};

#ifdef SUPPLE_WITH_ONNXRUNTIME
class OnnxController : public Controller {
 public:
  // The file has to be the one that the manifest lists.
  OnnxController(const std::string& bundle, const std::string& digest)
      : memory_(SUPPLE_POLICY_MEMORY, 0.0f) {
    std::ifstream file(bundle + "/policy.onnx", std::ios::binary);
    std::stringstream bytes;
    bytes << file.rdbuf();
    const std::string graph = bytes.str();
    if (!file || sha256(graph) != digest)
      throw std::runtime_error("policy.onnx is not the one that manifest.json lists");
    Ort::SessionOptions options;
    options.SetIntraOpNumThreads(1);
    options.SetInterOpNumThreads(1);
    session_ = std::make_unique<Ort::Session>(env_, graph.data(), graph.size(), options);
    if (!gives("finite"))
      throw std::runtime_error("policy.onnx does not tell what was not finite: export again");
  }
  void reset() override { memory_.assign(memory_.size(), 0.0f); }
  bool step(const std::vector<float>& observation, std::vector<float>& action,
            std::vector<float>& command) override {
    std::vector<Ort::Value> inputs;
    std::vector<float> row = observation;
    inputs.push_back(tensor(row));
    if (!memory_.empty()) inputs.push_back(tensor(memory_));
    const char* input_names[] = {"observation", "memory_in"};
    const char* output_names[] = {"command", "action", "finite", "memory_out"};
    const std::size_t count = inputs.size();
    std::vector<Ort::Value> outputs = session_->Run(
        Ort::RunOptions{nullptr}, input_names, inputs.data(), count, output_names, count + 2);
    copy(outputs[0], command);
    copy(outputs[1], action);
    if (count == 2) copy(outputs[3], memory_);
    return *outputs[2].GetTensorData<bool>();
  }

 private:
  static void copy(const Ort::Value& output, std::vector<float>& to) {
    if (output.GetTensorTypeAndShapeInfo().GetElementCount() != to.size())
      throw std::runtime_error("policy.onnx gives outputs of another size");
    const float* found = output.GetTensorData<float>();
    to.assign(found, found + to.size());
  }
  bool gives(const std::string& name) const {
    Ort::AllocatorWithDefaultOptions allocator;
    for (std::size_t i = 0; i < session_->GetOutputCount(); ++i)
      if (session_->GetOutputNameAllocated(i, allocator).get() == name) return true;
    return false;
  }
  static Ort::Value tensor(std::vector<float>& values) {
    const std::int64_t shape[] = {1, static_cast<std::int64_t>(values.size())};
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    return Ort::Value::CreateTensor<float>(memory, values.data(), values.size(), shape, 2);
  }
  Ort::Env env_{ORT_LOGGING_LEVEL_ERROR, "supple"};
  std::unique_ptr<Ort::Session> session_;
  std::vector<float> memory_;
};
#endif

inline std::unique_ptr<Controller> make_controller(const std::string& kind,
                                                   const std::string& bundle,
                                                   const std::string& onnx_digest) {
  if (kind == "c") return std::make_unique<GeneratedController>();
#ifdef SUPPLE_WITH_ONNXRUNTIME
  if (kind == "onnx") return std::make_unique<OnnxController>(bundle, onnx_digest);
#endif
  (void)bundle, (void)onnx_digest;
  throw std::runtime_error("--policy " + kind + " is not in this runner: c, or onnx if built with it");
}

}  // namespace supple
