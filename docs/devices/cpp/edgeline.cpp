// Verify an artifact on this machine, then classify photos:  edgeline FOLDER VARIANT [PHOTO...]
// C++17, ONNX Runtime 1.20 or newer, libjpeg-turbo, stb_image and nlohmann/json; see README.md for the command.
#include <onnxruntime_cxx_api.h>

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "decode.hpp"

using edgeline::Bytes;
using edgeline::fail;
using Floats = std::vector<float>;
using nlohmann::json;

Bytes read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) fail(path + ": cannot be read");
  return Bytes(std::istreambuf_iterator<char>(file), {});
}

// --- the model ------------------------------------------------------------------------------------------------------

Ort::SessionOptions options() {  // those the model was verified with
  Ort::SessionOptions options;
  options.AddConfigEntry("session.intra_op.allow_spinning", "0");
  options.AddConfigEntry("optimization.disable_specified_optimizers", "WeightBiasQuantization");
#if defined(__x86_64__)  // without VNNI, int8 products saturate without this setting
  if (!__builtin_cpu_supports("avx512vnni") && !__builtin_cpu_supports("avxvnni"))
    options.AddConfigEntry("session.x64quantprecision", "1");
#endif
  return options;
}

struct Classifier {
  std::string folder;
  json manifest;
  std::string variant;
  edgeline::Spec spec;
  Ort::Env env{ORT_LOGGING_LEVEL_ERROR};
  Ort::Session session{nullptr};

  Classifier(const std::string& folder, const std::string& variant) : folder(folder), variant(variant) {
    // If a file may have been tampered with, first compare its size and SHA-256 with the manifest.
    manifest = json::parse(read(folder + "/manifest.json"));
    if (manifest["schema"] != "edgeline.artifact/1") fail("another schema of artifact");
    const json& p = manifest["preprocess"];
    spec = {p["height"], p["width"], p["crop_fraction"], p["interpolation"], p.value("jpeg_decoding", "full") == "scaled"};
    for (const json& v : manifest["variants"])
      if (v["name"] == variant) {
        const Bytes model = read(folder + "/" + v["file"].get<std::string>());
        session = Ort::Session(env, model.data(), model.size(), options());
      }
    if (!session) fail("no variant " + variant);
  }

  Bytes pixels(const Bytes& file) const { return edgeline::pixels(file, manifest["preprocess"]["background"], spec); }

  std::pair<Floats, Floats> answer(Bytes pixels) {  // probabilities and logits
    const int64_t shape[] = {1, spec.height, spec.width, 3};
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeCPU);
    const Ort::Value image = Ort::Value::CreateTensor<uint8_t>(memory, pixels.data(), pixels.size(), shape, 4);
    const char *inputs[] = {"image"}, *outputs[] = {"probabilities", "logits"};
    const auto found = session.Run(Ort::RunOptions{}, inputs, &image, 1, outputs, 2);
    const auto floats = [&](const Ort::Value& value) {
      const float* first = value.GetTensorData<float>();
      return Floats(first, first + manifest["labels"].size());
    };
    return {floats(found[0]), floats(found[1])};
  }
};

// --- the golden samples ---------------------------------------------------------------------------------------------

double largest_difference(const Floats& one, const Floats& other) {
  if (one.size() != other.size()) fail("another number of classes");
  double largest = 0;
  for (size_t i = 0; i < one.size(); i++) {
    if (!std::isfinite(one[i])) return INFINITY;
    largest = std::max(largest, std::fabs(double(one[i]) - other[i]));
  }
  return largest;
}

void must(bool holds, const std::string& what, const std::string& hint) {
  if (!holds) fail(what + ": " + hint);
}

void verify(Classifier& classifier) {
  const json golden = json::parse(read(classifier.folder + "/golden/golden.json"));
  const json own = golden.value("variants", json::object()).value(classifier.variant, json::object());
  const double tolerance = own.value("tolerance", golden["tolerance"].get<double>());
  const double logit_tolerance = own.value("logit_tolerance", tolerance);
  for (const json& sample : golden["samples"]) {
    const std::string name = sample["file"];
    const json& answers = own.empty() ? sample : sample["variants"][classifier.variant];
    const Floats probabilities = answers["probabilities"], logits = answers["logits"], reference = sample["probabilities"];
    const Bytes pixels = classifier.pixels(read(classifier.folder + "/" + name));
    const Bytes stored = edgeline::decode(read(classifier.folder + "/" + sample["pixels"].get<std::string>()), {}).rgb;
    must(pixels.size() == stored.size(), name, "another size than the stored pixels");
    double pixel_difference = 0;
    for (size_t i = 0; i < pixels.size(); i++) pixel_difference += std::abs(pixels[i] - stored[i]) / double(pixels.size());
    must(pixel_difference <= golden["pixel_tolerance"], name, "other pixels; decoder, orientation, crop or resize differ");

    const double difference = largest_difference(classifier.answer(pixels).first, probabilities);
    must(difference <= tolerance, name, "other probabilities from the same pixels; model or runtime differ");
    const size_t best = size_t(std::max_element(reference.begin(), reference.end()) - reference.begin());
    must(classifier.manifest["labels"][best] == sample["label"], name, "the labels are not in the model's order");

    float largest = 1;
    for (const float logit : logits) largest = std::max(largest, std::fabs(logit));
    const double logit_difference = largest_difference(classifier.answer(stored).second, logits) / largest;
    must(logit_difference <= logit_tolerance, name, "other logits from the stored pixels; model or runtime differ");
    std::cout << name << " holds: pixels " << pixel_difference << ", probabilities " << difference << ", logits "
              << logit_difference << "\n";
  }
}

int main(int count, char** arguments) try {
  if (count < 3) fail("usage: edgeline FOLDER VARIANT [PHOTO...]");
  setenv("ORT_DISABLE_TELEMETRY", "1", 1);  // before the runtime starts
  Classifier classifier(arguments[1], arguments[2]);
  verify(classifier);
  for (int i = 3; i < count; i++) {
    const Floats probabilities = classifier.answer(classifier.pixels(read(arguments[i]))).first;
    const auto best = std::max_element(probabilities.begin(), probabilities.end());
    std::cout << arguments[i] << "\t" << classifier.manifest["labels"][best - probabilities.begin()].get<std::string>()
              << "\t" << *best << "\n";
  }
  return 0;
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
