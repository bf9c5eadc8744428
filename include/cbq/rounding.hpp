// SPDX-License-Identifier: Apache-2.0
#pragma once

// Rounding methods: from weights to QuantizedMatrix.

#include <cbq/rounding/nearest.hpp>
