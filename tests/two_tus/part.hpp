// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the parts of the mixed program offer each other. Only plain data crosses files: numbers, Isa, views.

#include <cbq/core/cpu.hpp>
#include <cbq/core/view.hpp>

/// One source file, compiled several times with different flags or as another version of cbq.
struct Part {
  const char* name;
  bool (*runs_right)(cbq::Isa cap);                         ///< uses cbq and compares with plain arithmetic
  double (*sum)(const cbq::MatrixView<const float>& view);  ///< a view made by another part
  cbq::Isa (*detect_address)();                             ///< address of this part's copy of a cbq function
};

// Constants, not functions: reading one runs no code of its part.
extern const Part part_baseline;
extern const Part part_v4;
extern const Part part_other_version;
