// SPDX-License-Identifier: Apache-2.0
// Quantizes, packs and multiplies: values that the grids hold exactly, so the result is known.
#include <cbq/cbq.hpp>
#include <cstdio>
#include <cstring>
#include <vector>

#define TEXT_OF(x) #x
#define STRING_OF(x) TEXT_OF(x)

int main() {
#ifdef EXPECTED_VERSION
  const char* version = STRING_OF(CBQ_VERSION_MAJOR) "." STRING_OF(CBQ_VERSION_MINOR) "." STRING_OF(CBQ_VERSION_PATCH);
  if (std::strcmp(version, EXPECTED_VERSION) != 0) {
    std::printf("the package says version %s, the header says %s\n", EXPECTED_VERSION, version);
    return 1;
  }
#endif

  constexpr cbq::Scheme scheme = cbq::schemes::w4a8_g128;
  const std::vector<float> w(32 * 256, 0.25f), x(2 * 256, 1.0f);
  std::vector<float> y(2 * 32);
  const auto codes = cbq::round_nearest(cbq::matrix_view(w.data(), 32, 256), scheme.weight);
  if (!codes) return 2;
  const auto weights = cbq::PackedWeights<scheme>::from_codes(codes->view());
  if (!weights) return 3;
  cbq::QuantizedActivations<scheme> tokens;
  if (!tokens.quantize(cbq::matrix_view(x.data(), 2, 256))) return 4;
  if (!cbq::matmul(tokens.view(), weights->view(), cbq::matrix_view(y.data(), 2, 32))) return 5;
  for (const float value : y) {
    if (value < 63.5f || value > 64.5f) return 6;
  }
  return 0;
}
