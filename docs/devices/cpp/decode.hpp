// From an image file's bytes to the model's input. C++17, libjpeg-turbo and stb_image; include it in one file only.
#pragma once
#include <turbojpeg.h>

#include <array>
#include <cstring>
#include <memory>

#define STB_IMAGE_IMPLEMENTATION
#define STBI_NO_JPEG  // Pillow uses libjpeg-turbo too, so the decoded bytes are the same
#include <stb_image.h>

#include "pixels.hpp"

namespace edgeline {

using Bytes = std::vector<uint8_t>;

constexpr size_t kMaxBytes = 16 << 20, kMaxPixels = 50'000'000;

[[noreturn]] inline void fail(const std::string& what) { throw std::runtime_error(what); }

inline int orientation_of(const Bytes& jpeg) {  // EXIF tag 0x0112; 1 if it is missing or invalid
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
    if (u16(entry) == 0x0112) return u16(entry + 8) <= 8 ? int(u16(entry + 8)) : 1;
  return 1;
}

// Whether a JPEG of one scan has no end marker. In a progressive one, only that marker shows that no scan is missing.
inline bool lacks_end(const Bytes& jpeg) {
  const auto u8 = [&](size_t at) -> size_t { return at < jpeg.size() ? jpeg[at] : 0; };
  size_t at = 2, components = 0;
  for (; u8(at) == 0xFF && u8(at + 1) != 0xDA; at += u8(at + 1) == 0xFF ? 1 : 2 + (u8(at + 2) << 8 | u8(at + 3)))
    if (u8(at + 1) == 0xC0 || u8(at + 1) == 0xC1) components = u8(at + 9);
  if (u8(at) != 0xFF || components == 0 || u8(at + 4) != components) return false;
  for (; at + 1 < jpeg.size(); at++)
    if (jpeg[at] == 0xFF && jpeg[at + 1] == 0xD9) return false;
  return true;
}

inline bool is_jpeg(const Bytes& data) { return data.size() > 2 && data[0] == 0xFF && data[1] == 0xD8; }

inline Bytes jpeg_pixels(const Bytes& data, const Spec& spec) {
  if (data.size() > kMaxBytes) fail("too many bytes");
  if (lacks_end(data)) {  // with the marker, the library warns only if a bit of the pixels is missing
    Bytes ended = data;
    if (ended.back() != 0xFF) ended.push_back(0xFF);
    ended.push_back(0xD9);
    return jpeg_pixels(ended, spec);
  }
  const std::unique_ptr<void, int (*)(void*)> decoder(tjInitDecompress(), tjDestroy);
  int width, height, subsampling, colors;
  if (tjDecompressHeader3(decoder.get(), data.data(), data.size(), &width, &height, &subsampling, &colors))
    fail(tjGetErrorStr2(decoder.get()));
  if (size_t(width) * height > kMaxPixels) fail("too many pixels");
  const int orientation = orientation_of(data);
  const int upright_width = orientation >= 5 ? height : width, upright_height = orientation >= 5 ? width : height;
  const int scale = jpeg_scale(upright_width, upright_height, spec);
  // The library chooses the largest of its scales that does not exceed this size.
  Picture picture{(width + scale - 1) / scale, (height + scale - 1) / scale, {}};
  picture.rgb.resize(size_t(3) * picture.width * picture.height);
  // A warning is an error here: the rest of a truncated file would be gray.
  if (tjDecompress2(decoder.get(), data.data(), data.size(), picture.rgb.data(), picture.width, 0, picture.height, TJPF_RGB, 0))
    fail(tjGetErrorStr2(decoder.get()));
  return fit(upright(picture, orientation), reduced_box(upright_width, upright_height, orientation, scale, spec), spec);
}

inline Picture decode(const Bytes& data, const std::array<int, 3>& background) {  // PNG, GIF or BMP
  if (data.size() > kMaxBytes) fail("too many bytes");
  int width, height, channels;
  if (!stbi_info_from_memory(data.data(), int(data.size()), &width, &height, &channels)) fail("no JPEG, PNG, GIF or BMP");
  if (size_t(width) * height > kMaxPixels) fail("too many pixels");
  const std::unique_ptr<uint8_t, void (*)(void*)> rgba(
      stbi_load_from_memory(data.data(), int(data.size()), &width, &height, &channels, 4), stbi_image_free);
  if (!rgba) fail(stbi_failure_reason());
  Picture picture{width, height, {}};
  const uint8_t* const end = rgba.get() + size_t(4) * width * height;
  bool opaque = data[0] == 'B';  // in a BMP, alpha that is zero everywhere was never written
  for (const uint8_t* p = rgba.get(); p < end && opaque; p += 4) opaque = p[3] == 0;
  for (const uint8_t* p = rgba.get(); p < end; p += 4) {
    const int alpha = opaque ? 255 : p[3];
    for (int c = 0; c < 3; c++) picture.rgb.push_back(uint8_t((p[c] * alpha + background[c] * (255 - alpha) + 127) / 255));
  }
  return picture;
}

inline Bytes pixels(const Bytes& data, const std::array<int, 3>& background, const Spec& spec) {  // the model's input
  if (is_jpeg(data)) return jpeg_pixels(data, spec);
  const Picture picture = decode(data, background);
  return fit(picture, crop_box(picture.width, picture.height, spec), spec);
}

}  // namespace edgeline
