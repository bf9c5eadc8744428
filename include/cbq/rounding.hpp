// SPDX-License-Identifier: Apache-2.0
#pragma once

// Rounding methods: from weights to QuantizedMatrix.

#include <cbq/rounding/ada.hpp>
#include <cbq/rounding/gptq.hpp>
#include <cbq/rounding/learned_steps.hpp>
#include <cbq/rounding/lora.hpp>
#include <cbq/rounding/nearest.hpp>
#include <cbq/rounding/straight_through.hpp>
#include <cbq/rounding/weight_clipping.hpp>
