// SPDX-License-Identifier: Apache-2.0
#pragma once

// Outliers: detectors, truncation of weights, scaling factors of activations (CFP), OMSE as baseline.

#include <cbq/outlier/activation_scaling.hpp>
#include <cbq/outlier/coarse_to_fine.hpp>
#include <cbq/outlier/detector.hpp>
#include <cbq/outlier/inter_intra.hpp>
#include <cbq/outlier/iqr.hpp>
#include <cbq/outlier/omse.hpp>
#include <cbq/outlier/percentile.hpp>
#include <cbq/outlier/row_error.hpp>
#include <cbq/outlier/truncation.hpp>
