// SPDX-License-Identifier: Apache-2.0
#pragma once

// CoarseToFine: a detector whose candidates a second one sorts into outliers and reserved values. With Iqr and
// InterIntra it is CBQ's coarse-to-fine detection (CFP; arXiv 2312.07950). A single candidate has nothing to be
// compared with and stays an outlier of the coarse threshold.
//
// Where no real outlier exists the fine step still flags the few largest values: those who act on a cut must ask how
// far the outliers stand off (relative_gap()), as truncation and scaling do.

#include <span>

#include <cbq/outlier/detector.hpp>
#include <cbq/outlier/inter_intra.hpp>
#include <cbq/outlier/iqr.hpp>

namespace cbq {
inline namespace CBQ_ABI {

template <class Coarse = Iqr, class Fine = InterIntra>
struct CoarseToFine {
  Coarse coarse = {};
  Fine fine = {};

  template <std::floating_point T>
    requires OutlierDetector<Coarse, T> && OutlierRefiner<Fine, T>
  [[nodiscard]] Cut detect(std::span<const T> ascending) const noexcept {
    const Cut cut = coarse.detect(ascending);
    if (cut.count <= 1) return cut;
    return fine.refine(ascending.last(cut.count), cut.threshold);
  }
};

static_assert(OutlierDetector<CoarseToFine<>, float> && OutlierDetector<CoarseToFine<>, double>);

}  // namespace CBQ_ABI
}  // namespace cbq
