// Prove an artifact on this machine, then say what is on photos:  edgeline FOLDER VARIANT [PHOTO...]
// C++17, ONNX Runtime 1.20 or newer, libjpeg-turbo, stb_image and nlohmann/json; README.md beside this file has the command.
#include <onnxruntime_cxx_api.h>
#include <turbojpeg.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>

#define STB_IMAGE_IMPLEMENTATION
#define STBI_NO_JPEG  // libjpeg-turbo decodes to the same bytes as Pillow, which is built on it
#include <stb_image.h>

#include "pixels.hpp"

using edgeline::Picture;
using Bytes = std::vector<uint8_t>;
using Floats = std::vector<float>;
using nlohmann::json;

constexpr size_t kMaxBytes = 16 << 20, kMaxPixels = 50'000'000;

[[noreturn]] void fail(const std::string& what) { throw std::runtime_error(what); }

Bytes read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) fail(path + ": cannot be read");
  return Bytes(std::istreambuf_iterator<char>(file), {});
}

// --- decode ---------------------------------------------------------------------------------------------------------

int orientation_of(const Bytes& jpeg) {  // EXIF tag 0x0112; 1 where there is none or it makes no sense
  bool big = true;
  const auto u8 = [&](size_t at) -> uint32_t { return at < jpeg.size() ? jpeg[at] : 0; };
  const auto u16 = [&](size_t at) { return big ? u8(at) << 8 | u8(at + 1) : u8(at + 1) << 8 | u8(at); };
  const auto u32 = [&](size_t at) { return big ? u16(at) << 16 | u16(at + 2) : u16(at + 2) << 16 | u16(at); };
  size_t at = 2;  // of the marker
  while (u8(at) == 0xFF && u8(at + 1) != 0xDA && at + 10 < jpeg.size() &&
         !(u8(at + 1) == 0xE1 && std::memcmp(&jpeg[at + 4], "Exif\0", 6) == 0))
    at += 2 + u16(at + 2);
  if (u8(at + 1) != 0xE1) return 1;
  const size_t tiff = at + 10;
  big = u8(tiff) == 'M';
  const size_t directory = tiff + u32(tiff + 4);
  for (size_t entry = directory + 2, left = u16(directory); left > 0; left--, entry += 12)
    if (u16(entry) == 0x0112) return int(u16(entry + 8));
  return 1;
}

Picture decode_jpeg(const Bytes& data) {
  const std::unique_ptr<void, int (*)(void*)> decoder(tjInitDecompress(), tjDestroy);
  int width, height, subsampling, colours;
  if (tjDecompressHeader3(decoder.get(), data.data(), data.size(), &width, &height, &subsampling, &colours))
    fail(tjGetErrorStr2(decoder.get()));
  if (size_t(width) * height > kMaxPixels) fail("too many pixels");
  Picture picture{width, height, Bytes(size_t(3) * width * height)};
  // A warning is an error here: a truncated file would be grey from there on.
  if (tjDecompress2(decoder.get(), data.data(), data.size(), picture.rgb.data(), width, 0, height, TJPF_RGB, 0))
    fail(tjGetErrorStr2(decoder.get()));
  return edgeline::upright(picture, orientation_of(data));
}

Picture decode(const Bytes& data, const std::array<int, 3>& background) {
  if (data.size() > kMaxBytes) fail("too many bytes");
  if (data.size() > 2 && data[0] == 0xFF && data[1] == 0xD8) return decode_jpeg(data);
  int width, height, channels;
  if (!stbi_info_from_memory(data.data(), int(data.size()), &width, &height, &channels)) fail("no JPEG, PNG, GIF or BMP");
  if (size_t(width) * height > kMaxPixels) fail("too many pixels");
  const std::unique_ptr<uint8_t, void (*)(void*)> rgba(
      stbi_load_from_memory(data.data(), int(data.size()), &width, &height, &channels, 4), stbi_image_free);
  if (!rgba) fail(stbi_failure_reason());
  Picture picture{width, height, {}};
  for (const uint8_t* p = rgba.get(); p < rgba.get() + size_t(4) * width * height; p += 4)
    for (int c = 0; c < 3; c++) picture.rgb.push_back(uint8_t((p[c] * p[3] + background[c] * (255 - p[3]) + 127) / 255));
  return picture;
}

// --- the model ------------------------------------------------------------------------------------------------------

Ort::SessionOptions options() {  // those the model was proven with
  Ort::SessionOptions options;
  options.AddConfigEntry("session.intra_op.allow_spinning", "0");
  options.AddConfigEntry("optimization.disable_specified_optimizers", "WeightBiasQuantization");
#if defined(__x86_64__)  // without VNNI, int8 products saturate unless told not to
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
    // A file that may have been tampered with: first compare the size and SHA-256 that the manifest names.
    manifest = json::parse(read(folder + "/manifest.json"));
    if (manifest["schema"] != "edgeline.artifact/1") fail("another schema of artifact");
    const json& p = manifest["preprocess"];
    spec = {p["height"], p["width"], p["crop_fraction"], p["interpolation"]};
    for (const json& v : manifest["variants"])
      if (v["name"] == variant) {
        const Bytes model = read(folder + "/" + v["file"].get<std::string>());
        session = Ort::Session(env, model.data(), model.size(), options());
      }
    if (!session) fail("no variant " + variant);
  }

  Bytes pixels(const Bytes& file) const { return edgeline::fit(decode(file, manifest["preprocess"]["background"]), spec); }

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

void prove(Classifier& classifier) {
  const json golden = json::parse(read(classifier.folder + "/golden/golden.json"));
  const json own = golden.value("variants", json::object()).value(classifier.variant, json::object());
  const double tolerance = own.value("tolerance", golden["tolerance"].get<double>());
  const double logit_tolerance = own.value("logit_tolerance", tolerance);
  for (const json& sample : golden["samples"]) {
    const std::string name = sample["file"];
    const json& answers = own.empty() ? sample : sample["variants"][classifier.variant];
    const Floats probabilities = answers["probabilities"], logits = answers["logits"], reference = sample["probabilities"];
    const Bytes pixels = classifier.pixels(read(classifier.folder + "/" + name));
    const Bytes stored = decode(read(classifier.folder + "/" + sample["pixels"].get<std::string>()), {}).rgb;
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
  prove(classifier);
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
