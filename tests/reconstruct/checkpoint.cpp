// SPDX-License-Identifier: Apache-2.0
#include <cbq/reconstruct/checkpoint.hpp>

#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <string>
#include <vector>

#include "reconstruct/tiny_host.hpp"
#include "support/files.hpp"
#include "support/kernels.hpp"

using cbq::Errc;
using cbq::ReconstructionOptions;
using Bytes = std::vector<std::byte>;

namespace {

ReconstructionOptions short_run() {
  return {.windows = {.size = 2, .overlap = 1, .ends = cbq::WindowEnds::growing}, .steps = 6, .batch = 3};
}

struct Run {
  Bytes result;               ///< codes, if it came to the end
  std::vector<Bytes> states;  ///< after each window
  cbq::Status status;
  std::size_t steps = 0;  ///< taken, in all windows
};

Run run(ReconstructionOptions options, const Bytes& from = {}, std::size_t stop_after = 0) {
  Run done;
  std::stop_source stop;
  options.stop = stop.get_token();
  options.progress = [&](const cbq::ReconstructionProgress&) {
    if (++done.steps == stop_after) stop.request_stop();
  };
  options.checkpoint.save = [&](std::span<const std::byte> bytes) -> cbq::Status {
    done.states.emplace_back(bytes.begin(), bytes.end());
    return {};
  };
  options.checkpoint.resume = from;
  tiny::Host<> host(4);
  const auto reports = tiny::run(host, options);
  done.status = reports ? cbq::Status() : cbq::Status(reports.error());
  if (reports) done.result = host.bytes();
  return done;
}

// Bytes whose checksum is right again.
Bytes sealed(Bytes bytes) {
  const std::uint64_t checksum = cbq::hash_bytes(std::span(bytes).first(bytes.size() - 8));
  std::memcpy(bytes.data() + bytes.size() - 8, &checksum, 8);
  return bytes;
}

}  // namespace

TEST_CASE("A run that was cut off continues from any window to the same bits") {
  const Run whole = run(short_run());
  REQUIRE(whole.status);
  REQUIRE(whole.states.size() == 5);
  for (std::size_t window = 0; window < 5; ++window) {
    CAPTURE(window);
    const Run rest = run(short_run(), whole.states[window]);
    REQUIRE(rest.status);
    CHECK(rest.result == whole.result);
    CHECK(rest.steps == 6 * (4 - window));
    if (window < 4) CHECK(rest.states.back() == whole.states.back());
  }
}

TEST_CASE("A run that is stopped inside a window continues from the one before") {
  const Run whole = run(short_run());
  const Run stopped = run(short_run(), {}, 15);
  CHECK(stopped.status.error().code == Errc::interrupted);
  REQUIRE(stopped.states.size() == 2);
  const Run rest = run(short_run(), stopped.states.back());
  CHECK(rest.result == whole.result);
  CHECK(rest.steps == 18);
}

TEST_CASE("A state that cannot be saved ends the run") {
  ReconstructionOptions options = short_run();
  options.checkpoint.save = [](std::span<const std::byte>) -> cbq::Status {
    return cbq::Error{Errc::io, "no space", "state"};
  };
  tiny::Host<> host(2);
  CHECK(tiny::run(host, options).error().code == Errc::io);
}

TEST_CASE("States of other settings, models and texts are refused") {
  const Bytes state = run(short_run()).states[1];
  const auto refused = [&](auto change) {
    ReconstructionOptions options = short_run();
    change(options);
    const cbq::Status status = run(options, state).status;
    REQUIRE_FALSE(status);
    CHECK(status.error().code == Errc::bad_argument);
  };
  refused([](auto& o) { o.steps = 7; });
  refused([](auto& o) { o.batch = 2; });
  refused([](auto& o) { o.seed = 9; });
  refused([](auto& o) { o.windows.overlap = 0; });
  refused([](auto& o) { o.windows.ends = cbq::WindowEnds::fixed; });
  refused([](auto& o) { o.decay = cbq::Decay::cosine; });
  refused([](auto& o) { o.logits_weight = 0.5; });
  refused([](auto& o) { o.same_input_weight = 0.5; });
  refused([](auto& o) { o.hardened_share = 0.5; });
  refused([](auto& o) { o.checkpoint.fingerprint = 1; });

  ReconstructionOptions options = short_run();
  options.checkpoint.resume = state;
  tiny::Host<> host(4), shorter(3);
  CHECK(tiny::run(shorter, options).error().code == Errc::bad_argument);
  tiny::States states;
  states.target[7] += 1;
  constexpr cbq::SerialExecutor serial;
  cbq::ExecutionContext<> context(serial, cbq::detect());
  const auto other = cbq::reconstruct(host, states.views(), cbq::SquaredLoss::normalized, options, context);
  CHECK(other.error().code == Errc::bad_argument);
}

TEST_CASE("Damaged states are errors") {
  const Bytes state = run(short_run()).states[2];
  for (std::size_t size : {std::size_t{1}, std::size_t{7}, std::size_t{8}, std::size_t{40}, state.size() - 1}) {
    CAPTURE(size);
    const support::GuardedBytes cut(std::span<const std::byte>(state).first(size));
    const auto opened = cbq::CheckpointReader::open(cut.bytes());
    CHECK((!opened || size == 8));
    const Run failed = run(short_run(), Bytes(state.begin(), state.begin() + static_cast<std::ptrdiff_t>(size)));
    CHECK(failed.status.error().code == Errc::bad_file);
  }
  for (std::size_t at = 0; at < state.size(); at += 97) {
    Bytes flipped = state;
    flipped[at] ^= std::byte{4};
    CHECK(cbq::CheckpointReader::open(flipped).error().code == Errc::bad_file);
  }
  // Cut or changed with a checksum that fits: sizes and values are checked all the same.
  for (std::size_t size = 40; size < state.size(); size += state.size() / 7) {
    Bytes cut(state.begin(), state.begin() + static_cast<std::ptrdiff_t>(size));
    CHECK(run(short_run(), sealed(cut)).status.error().code == Errc::bad_file);
  }
  Bytes longer = state;
  longer.insert(longer.end(), 8, std::byte{0});
  CHECK(run(short_run(), sealed(longer)).status.error().code == Errc::bad_file);
  Bytes version = state;
  version[8] = std::byte{77};
  CHECK(run(short_run(), sealed(version)).status.error().code == Errc::unsupported);
  Bytes windows = state;
  windows[24] = std::byte{200};
  CHECK(run(short_run(), sealed(windows)).status.error().code == Errc::bad_file);
}

TEST_CASE("Hashes depend on every byte and on the length") {
  const Bytes zeros(40, std::byte{0});
  std::vector<std::uint64_t> seen;
  for (std::size_t size = 0; size <= zeros.size(); ++size) {
    seen.push_back(cbq::hash_bytes(std::span(zeros).first(size)));
    for (std::size_t at = 0; at < size; ++at) {
      Bytes changed(zeros.begin(), zeros.begin() + static_cast<std::ptrdiff_t>(size));
      changed[at] = std::byte{1};
      seen.push_back(cbq::hash_bytes(changed));
    }
  }
  std::sort(seen.begin(), seen.end());
  CHECK(std::adjacent_find(seen.begin(), seen.end()) == seen.end());
}
