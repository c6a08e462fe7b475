// Runs docs/devices/cpp/pixels.hpp on cases from standard input, each a line of numbers and raw RGB: for each, the scale that a
// JPEG of its size would be decoded at, and the pixels, raw, too.
#include <cstdio>

#include "pixels.hpp"

int main() {
  int full_width, full_height, scale, orientation, model_width, model_height;
  double crop_fraction;
  char interpolation[32];
  while (std::scanf("%d %d %d %d %d %d %lf %31s", &full_width, &full_height, &scale, &orientation, &model_width, &model_height,
                    &crop_fraction, interpolation) == 8) {
    std::getchar();  // the line's end
    edgeline::Picture picture{(full_width + scale - 1) / scale, (full_height + scale - 1) / scale, {}};
    picture.rgb.resize(size_t(3) * picture.width * picture.height);
    if (std::fread(picture.rgb.data(), 1, picture.rgb.size(), stdin) != picture.rgb.size()) return 1;
    const edgeline::Spec spec{model_height, model_width, crop_fraction, interpolation, true};
    const bool lies = orientation >= 5 && orientation <= 8;
    const int width = lies ? full_height : full_width, height = lies ? full_width : full_height;
    std::putchar(edgeline::jpeg_scale(width, height, spec));
    const auto box = edgeline::reduced_box(width, height, orientation, scale, spec);
    const auto pixels = edgeline::fit(edgeline::upright(picture, orientation), box, spec);
    std::fwrite(pixels.data(), 1, pixels.size(), stdout);
  }
}
