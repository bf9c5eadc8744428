// SPDX-License-Identifier: Apache-2.0
#pragma once

// Dropping tokens of a prompt that little depends on.

#include <cbq/prune/gather.hpp>
#include <cbq/prune/importance.hpp>
#include <cbq/prune/schedule.hpp>
#include <cbq/prune/selection.hpp>
#include <cbq/prune/token_pruning.hpp>
