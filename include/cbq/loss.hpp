// SPDX-License-Identifier: Apache-2.0
#pragma once

// Losses of reconstruction.

#include <cbq/loss/absolute.hpp>
#include <cbq/loss/softmax_kl.hpp>
#include <cbq/loss/squared.hpp>
#include <cbq/loss/weighted_sum.hpp>
