// Runs docs/devices/cpp/pixels.hpp on raw RGB from standard input; the result goes to standard output.
// Arguments: width height orientation model_width model_height crop_fraction interpolation
#include <cstdio>
#include <cstdlib>

#include "pixels.hpp"

int main(int, char** a) {
  edgeline::Picture picture{std::atoi(a[1]), std::atoi(a[2]), {}};
  picture.rgb.resize(size_t(3) * picture.width * picture.height);
  if (std::fread(picture.rgb.data(), 1, picture.rgb.size(), stdin) != picture.rgb.size()) return 1;
  const edgeline::Spec spec{std::atoi(a[5]), std::atoi(a[4]), std::atof(a[6]), a[7]};
  const auto pixels = edgeline::fit(edgeline::upright(picture, std::atoi(a[3])), spec);
  return std::fwrite(pixels.data(), 1, pixels.size(), stdout) == pixels.size() ? 0 : 1;
}
