// SPDX-License-Identifier: Apache-2.0

// The state of a reconstruction that was cut off, as it comes and with its checksum made right, continued on the tiny
// model of the tests, which is stopped before it trains.

#include <cstring>
#include <stop_token>
#include <string>
#include <vector>

#include "reconstruct/tiny_host.hpp"
#include "targets.hpp"

namespace fuzz {

namespace {

cbq::ReconstructionOptions few_steps() {
  return {.windows = {.size = 2, .overlap = 1, .ends = cbq::WindowEnds::growing}, .steps = 2, .batch = 3};
}

void resume(Bytes state) {
  std::stop_source stop;
  stop.request_stop();
  cbq::ReconstructionOptions options = few_steps();
  options.stop = stop.get_token();
  options.checkpoint.resume = state;
  tiny::Host<> host(3);
  (void)accepted(tiny::run(host, options));
}

}  // namespace

void calibration_state(Bytes bytes) {
  (void)accepted(cbq::CheckpointReader::open(bytes));
  if (bytes.size() < sizeof(std::uint64_t)) return;  // fewer are refused; none at all is a start
  std::vector<std::byte> sealed(bytes.begin(), bytes.end());
  const std::size_t end = sealed.size() - sizeof(std::uint64_t);
  const std::uint64_t checksum = cbq::hash_bytes(std::span(sealed).first(end));
  std::memcpy(sealed.data() + end, &checksum, sizeof checksum);
  resume(sealed);
}

void calibration_state_seeds(const std::string& folder) {
  cbq::ReconstructionOptions options = few_steps();
  std::size_t window = 0;
  options.checkpoint.save = [&](Bytes state) -> cbq::Status {
    if (++window == 2) write_seed(folder + "/two_windows", state);  // finished blocks and open ones
    return {};
  };
  tiny::Host<> host(3);
  require(bool(tiny::run(host, options)));
}

}  // namespace fuzz
