// From a decoded image to the model's input, bit-identical to serve/preprocess.py: make upright, crop, resize.
// Needs only C++17.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace edgeline {

struct Spec {  // `preprocess` of the manifest
  int height, width;
  double crop_fraction;
  std::string interpolation;
  bool scaled_jpegs = false;  // whether `jpeg_decoding` is present and "scaled"
};

struct Box {  // edges of a rectangle, in pixels
  double left, top, right, bottom;
};

struct Picture {  // rows from the top, three bytes per pixel: red, green, blue
  int width, height;
  std::vector<uint8_t> rgb;
};

inline Picture upright(const Picture& from, int orientation) {  // the value of EXIF tag 0x0112
  if (orientation < 2 || orientation > 8) return from;
  const bool swapped = orientation >= 5;
  const bool flip_x = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
  const bool flip_y = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
  Picture to{swapped ? from.height : from.width, swapped ? from.width : from.height, {}};
  to.rgb.resize(from.rgb.size());
  for (int y = 0; y < to.height; y++)
    for (int x = 0; x < to.width; x++) {
      const int u = swapped ? y : x, v = swapped ? x : y;
      const size_t column = flip_x ? from.width - 1 - u : u, row = flip_y ? from.height - 1 - v : v;
      std::copy_n(&from.rgb[3 * (row * from.width + column)], 3, &to.rgb[3 * (size_t(y) * to.width + x)]);
    }
  return to;
}

// The centered rectangle of the model's aspect ratio, in whole pixels of an upright image of this size.
inline Box crop_box(int width, int height, const Spec& spec) {
  const double scale = std::min(width / double(spec.width), height / double(spec.height)) * spec.crop_fraction;
  const int across = std::max(1, int(std::nearbyint(spec.width * scale)));
  const int down = std::max(1, int(std::nearbyint(spec.height * scale)));
  const int left = (width - across) / 2, top = (height - down) / 2;
  return {double(left), double(top), double(left + across), double(top + down)};
}

// The divisor by which a JPEG is reduced while decoding; its sides are rounded up. The size is that of the upright image.
inline int jpeg_scale(int width, int height, const Spec& spec) {
  const Box box = crop_box(width, height, spec);
  if (spec.scaled_jpegs)
    for (const int scale : {8, 4, 2})
      if (box.right - box.left >= 2 * scale * spec.width && box.bottom - box.top >= 2 * scale * spec.height) return scale;
  return 1;
}

// `crop_box` in the upright image that was decoded at 1/scale. The last stored row and column were padded to whole pixels;
// rotated or mirrored, they may come first.
inline Box reduced_box(int width, int height, int orientation, int scale, const Spec& spec) {
  const Box box = crop_box(width, height, spec);
  const bool from_right = orientation == 2 || orientation == 3 || orientation == 6 || orientation == 7;
  const bool from_bottom = orientation == 3 || orientation == 4 || orientation == 7 || orientation == 8;
  const int x = from_right ? (scale - width % scale) % scale : 0, y = from_bottom ? (scale - height % scale) % scale : 0;
  return {(box.left + x) / scale, (box.top + y) / scale, (box.right + x) / scale, (box.bottom + y) / scale};
}

inline Picture cut(const Picture& from, const Box& box) {  // the whole pixels that the rectangle touches
  const int left = int(std::floor(box.left)), top = int(std::floor(box.top));
  Picture to{int(std::ceil(box.right)) - left, int(std::ceil(box.bottom)) - top, {}};
  to.rgb.reserve(size_t(3) * to.width * to.height);
  for (int y = 0; y < to.height; y++) {
    const uint8_t* row = &from.rgb[3 * (size_t(top + y) * from.width + left)];
    to.rgb.insert(to.rgb.end(), row, row + 3 * to.width);
  }
  return to;
}

inline double sinc(double x) { return x == 0 ? 1 : std::sin(M_PI * x) / (M_PI * x); }

inline std::pair<double, double (*)(double)> filter_of(const std::string& name) {  // its radius and its weights
  if (name == "bilinear") return {1, [](double x) { return std::max(0.0, 1 - std::fabs(x)); }};
  if (name == "bicubic")
    return {2, [](double x) {
              x = std::fabs(x);
              if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
              return x < 2 ? ((x - 5) * x + 8) * x * -0.5 + 2 : 0.0;
            }};
  if (name == "lanczos") return {3, [](double x) { return x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0.0; }};
  throw std::runtime_error("interpolation " + name + " is not known; bilinear, bicubic and lanczos are");
}

constexpr int kBits = 22;  // fractional bits: of 32 bits, two are left for overshoot and eight for the value

struct Taps {  // the weighted input pixels of one output pixel
  int first;
  std::vector<int32_t> weights;
};

// Resize `from` pixels, of which those between `first_edge` and `last_edge` become `to`.
inline std::vector<Taps> taps_of(int from, double first_edge, double last_edge, int to, const std::string& interpolation) {
  const auto [reach, weight] = filter_of(interpolation);
  const double scale = (last_edge - first_edge) / to;
  const double stretch = std::max(scale, 1.0);  // shrinking widens the filter: this is the antialiasing
  std::vector<Taps> all;
  for (int i = 0; i < to; i++) {
    const double center = first_edge + (i + 0.5) * scale;
    const int first = std::max(0, int(center - reach * stretch + 0.5));
    const int end = std::min(from, int(center + reach * stretch + 0.5));
    std::vector<double> weights;
    double sum = 0;
    for (int k = first; k < end; k++) sum += weights.emplace_back(weight((k - center + 0.5) * (1 / stretch)));
    Taps taps{first, {}};
    for (double w : weights) taps.weights.push_back(int32_t(std::lround(w / sum * (1 << kBits))));
    all.push_back(taps);
  }
  return all;
}

inline Picture resize_one_way(const Picture& from, const Box& box, int size, bool down, const std::string& interpolation) {
  const auto taps = down ? taps_of(from.height, box.top, box.bottom, size, interpolation)
                         : taps_of(from.width, box.left, box.right, size, interpolation);
  Picture to{down ? from.width : size, down ? size : from.height, {}};
  to.rgb.resize(size_t(3) * to.width * to.height);
  const size_t step = down ? size_t(3) * from.width : 3;
  for (int y = 0; y < to.height; y++)
    for (int x = 0; x < to.width; x++) {
      const Taps& t = taps[down ? y : x];
      const size_t start = down ? size_t(t.first) * from.width + x : size_t(y) * from.width + t.first;
      for (int c = 0; c < 3; c++) {
        int32_t sum = 1 << (kBits - 1);  // one half, so that the shift rounds
        for (size_t k = 0; k < t.weights.size(); k++) sum += t.weights[k] * from.rgb[3 * start + k * step + c];
        to.rgb[3 * (size_t(y) * to.width + x) + c] = uint8_t(std::clamp(sum >> kBits, 0, 255));
      }
    }
  return to;
}

inline std::vector<uint8_t> fit(const Picture& picture, const Box& box, const Spec& spec) {  // of an upright image
  const Picture part = cut(picture, box);
  const double left = std::floor(box.left), top = std::floor(box.top);
  const Box inside{box.left - left, box.top - top, box.right - left, box.bottom - top};
  // Horizontally first, then vertically; the intermediate result is rounded to bytes, too.
  const Picture across = resize_one_way(part, inside, spec.width, false, spec.interpolation);
  return resize_one_way(across, inside, spec.height, true, spec.interpolation).rgb;
}

}  // namespace edgeline
