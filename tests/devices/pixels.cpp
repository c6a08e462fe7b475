// Runs docs/devices/cpp/pixels.hpp on cases from standard input, each a line of numbers and raw RGB; results are raw, too.
#include <cstdio>

#include "pixels.hpp"

int main() {
  int width, height, orientation, model_width, model_height;
  double crop_fraction;
  char interpolation[32];
  while (std::scanf("%d %d %d %d %d %lf %31s", &width, &height, &orientation, &model_width, &model_height, &crop_fraction,
                    interpolation) == 7) {
    std::getchar();  // the line's end
    edgeline::Picture picture{width, height, std::vector<uint8_t>(size_t(3) * width * height)};
    if (std::fread(picture.rgb.data(), 1, picture.rgb.size(), stdin) != picture.rgb.size()) return 1;
    const edgeline::Spec spec{model_height, model_width, crop_fraction, interpolation};
    const auto pixels = edgeline::fit(edgeline::upright(picture, orientation), spec);
    std::fwrite(pixels.data(), 1, pixels.size(), stdout);
  }
}
