// Runs docs/devices/cpp/decode.hpp:  photo FILE HEIGHT WIDTH CROP INTERPOLATION  gives the raw pixels of a file.
#include <cstdio>
#include <fstream>
#include <iterator>

#include "decode.hpp"

int main(int, char** arguments) {
  std::ifstream file(arguments[1], std::ios::binary);
  const edgeline::Bytes data(std::istreambuf_iterator<char>(file), {});
  const edgeline::Spec spec{std::atoi(arguments[2]), std::atoi(arguments[3]), std::atof(arguments[4]), arguments[5], true};
  const auto pixels = edgeline::pixels(data, {255, 255, 255}, spec);
  std::fwrite(pixels.data(), 1, pixels.size(), stdout);
}
