// SPDX-License-Identifier: Apache-2.0
// Compiled once per part: CBQ_PART is the part's name, the flags differ. Every inline function of cbq that this file
// uses is emitted by each part, so the linker sees all copies; a copy in a wrong place is an illegal instruction on the
// older CPU.

#include "part.hpp"

#include <cbq/core/aligned.hpp>
#include <cbq/core/element.hpp>
#include <cbq/scheme.hpp>
#include "matmul.hpp"

#define CBQ_PART_JOIN(a, b) a##b
#define CBQ_PART_NAME(name) CBQ_PART_JOIN(part_, name)
#define CBQ_PART_TEXT(name) #name
#define CBQ_PART_STRING(name) CBQ_PART_TEXT(name)

namespace {

// Success and failure, so that Result, Error and its text are exercised, too.
bool errors_run_right() {
  const auto known = cbq::parse_scheme("w4a8_g128");
  const auto unknown = cbq::parse_scheme("w4b8");
  return known && *known == cbq::schemes::w4a8_g128 && !unknown && unknown.error().code == cbq::Errc::bad_argument;
}

bool buffers_run_right() {
  auto buffer = cbq::AlignedBuffer<float>::allocate(100);
  if (!buffer) return false;
  float expected = 0;
  for (std::size_t i = 0; i < buffer->size(); ++i) {
    (*buffer)[i] = cbq::to_float(cbq::to_half(static_cast<float>(i)));
    expected += static_cast<float>(i);
  }
  float sum = 0;
  for (const float value : *buffer) sum += value;
  return sum == expected;
}

bool runs_right(cbq::Isa cap) {
  return errors_run_right() && buffers_run_right() && matmul_runs_right(cap);
}

double sum(const cbq::MatrixView<const float>& view) {
  double total = 0;
  for (std::size_t r = 0; r < view.rows; ++r) {
    for (std::size_t c = 0; c < view.columns; ++c) total += static_cast<double>(cbq::row(view, r)[c]);
  }
  return total;
}

}  // namespace

constinit const Part CBQ_PART_NAME(CBQ_PART) = {CBQ_PART_STRING(CBQ_PART), &runs_right, &sum, &cbq::detect};
