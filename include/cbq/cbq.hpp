// SPDX-License-Identifier: Apache-2.0
#pragma once

// Everything but readers and writers of files, which need nlohmann_json (<cbq/io.hpp>), and executors for a threading
// library
// (<cbq/executor/openmp.hpp>, <cbq/executor/tbb.hpp>). An engine that only runs packed layers includes <cbq/gemm.hpp>
// alone.

#include <cbq/core/aligned.hpp>
#include <cbq/core/checked.hpp>
#include <cbq/core/checksum.hpp>
#include <cbq/core/context.hpp>
#include <cbq/core/cpu.hpp>
#include <cbq/core/element.hpp>
#include <cbq/core/executor.hpp>
#include <cbq/core/result.hpp>
#include <cbq/core/view.hpp>
#include <cbq/gemm.hpp>
#include <cbq/gemm/kernels_portable.hpp>
#include <cbq/kv.hpp>
#include <cbq/nn.hpp>
#include <cbq/outlier.hpp>
#include <cbq/prune.hpp>
#include <cbq/quant.hpp>
#include <cbq/rounding.hpp>
#include <cbq/scheme.hpp>
#include <cbq/transform.hpp>
