// SPDX-License-Identifier: Apache-2.0
#pragma once

// What every layer needs besides its operands: the host's threads, an instruction set, and memory for intermediate
// results. Workspace is a stack of 64-byte aligned pieces: take() what a call needs, and a Frame gives it back when the
// call ends. Memory is kept between calls, so from the second pass of the same shape on, forward passes allocate
// nothing.

#include <array>
#include <cstddef>
#include <span>
#include <utility>

#include <cbq/core/aligned.hpp>
#include <cbq/core/checked.hpp>
#include <cbq/core/cpu.hpp>
#include <cbq/core/executor.hpp>
#include <cbq/core/result.hpp>
#include <cbq/core/view.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// Memory of one forward pass after another; for one thread at a time.
class Workspace {
 public:
  Workspace() noexcept = default;
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  /// Gives back, at its end, everything taken since its beginning. Frames nest.
  class Frame {
   public:
    explicit Frame(Workspace& workspace) noexcept
        : workspace_(workspace), chunk_(workspace.chunk_), used_(workspace.used_) {
      ++workspace_.frames_;
    }
    ~Frame() { workspace_.release(chunk_, used_); }
    Frame(const Frame&) = delete;
    Frame& operator=(const Frame&) = delete;

   private:
    Workspace& workspace_;
    std::size_t chunk_;
    std::size_t used_;
  };

  /// `count` uninitialized elements on a 64-byte boundary, valid until the innermost Frame ends.
  /// Errc::bad_shape, Errc::out_of_memory.
  template <class T>
  [[nodiscard]] Result<std::span<T>> take(std::size_t count) noexcept {
    static_assert(std::is_trivially_copyable_v<T> && alignof(T) <= 64, "[cbq] Workspace: T must be trivially copyable");
    const Result<std::size_t> bytes = checked_product(count, sizeof(T));
    if (!bytes) return bytes.error();
    if (*bytes == 0) return std::span<T>{};
    const Result<std::byte*> memory = take_bytes(*bytes);
    if (!memory) return memory.error();
    return std::span<T>(reinterpret_cast<T*>(*memory), count);
  }

  /// An uninitialized matrix without gaps between its rows; errors as take().
  template <class T = float>
  [[nodiscard]] Result<MatrixView<T>> take_matrix(std::size_t rows, std::size_t columns) noexcept {
    const Result<std::size_t> count = checked_product(rows, columns);
    if (!count) return count.error();
    const Result<std::span<T>> memory = take<T>(*count);
    if (!memory) return memory.error();
    return matrix_view(memory->data(), rows, columns);
  }

  /// Bytes held.
  [[nodiscard]] std::size_t bytes() const noexcept {
    std::size_t total = 0;
    for (const AlignedBuffer<std::byte>& chunk : chunks_) total += chunk.size();
    return total;
  }

 private:
  // Each chunk is at least as large as all before it together: 48 of them exceed any address space.
  static constexpr std::size_t most_chunks = 48;
  static constexpr std::size_t smallest_chunk = std::size_t{1} << 16;

  [[nodiscard]] Result<std::byte*> take_bytes(std::size_t bytes) noexcept {
    const Result<std::size_t> padded = checked_sum(bytes, std::size_t{63});
    if (!padded) return padded.error();
    const std::size_t wanted = *padded / 64 * 64;
    while (chunks_[chunk_].size() - used_ < wanted) {
      // Chunks behind the current one are free: a frame that ended left them.
      if (chunks_[chunk_].size() != 0 && chunk_ + 1 < most_chunks) {
        ++chunk_;
        used_ = 0;
      }
      if (chunks_[chunk_].size() >= wanted) break;
      if (const Status grown = allocate_chunk(wanted); !grown) return grown.error();
    }
    std::byte* memory = chunks_[chunk_].data() + used_;
    used_ += wanted;
    return memory;
  }

  [[nodiscard]] Status allocate_chunk(std::size_t wanted) noexcept {
    std::size_t size = this->bytes();
    size = size < smallest_chunk ? smallest_chunk : size;
    size = size < wanted ? wanted : size;
    Result<AlignedBuffer<std::byte>> memory = AlignedBuffer<std::byte>::allocate(size);
    if (!memory) return memory.error();
    chunks_[chunk_] = *std::move(memory);
    return {};
  }

  void release(std::size_t chunk, std::size_t used) noexcept {
    chunk_ = chunk;
    used_ = used;
    if (--frames_ != 0 || chunk != 0 || used != 0 || chunks_[1].size() == 0) return;
    // The pass needed more than one chunk: the next one gets a single chunk that holds all of it.
    const std::size_t total = bytes();
    for (AlignedBuffer<std::byte>& each : chunks_) each = AlignedBuffer<std::byte>();
    if (Result<AlignedBuffer<std::byte>> memory = AlignedBuffer<std::byte>::allocate(total)) {
      chunks_[0] = *std::move(memory);
    }
  }

  std::array<AlignedBuffer<std::byte>, most_chunks> chunks_;
  std::size_t chunk_ = 0;   // that take() cuts from
  std::size_t used_ = 0;    // bytes of it
  std::size_t frames_ = 0;  // open
};

/// Threads, instruction set and workspace of a sequence of calls. One per thread that calls; the executor must outlive
/// it.
template <Executor E = SerialExecutor>
class ExecutionContext {
 public:
  /// `cap` lowers the instruction set; what the machine lacks is never used.
  explicit ExecutionContext(const E& executor, Isa cap = detect()) noexcept : executor_(&executor), isa_(capped(cap)) {}
  explicit ExecutionContext(const E&& executor, Isa cap = detect()) = delete;

  [[nodiscard]] const E& executor() const noexcept { return *executor_; }
  [[nodiscard]] Isa isa() const noexcept { return isa_; }
  [[nodiscard]] Workspace& workspace() noexcept { return workspace_; }

 private:
  const E* executor_;
  Isa isa_;
  Workspace workspace_;
};

/// A range of rows.
struct RowBlock {
  std::size_t first = 0;
  std::size_t count = 0;
};

/// Calls task(RowBlock) for blocks of 16 rows that cover [0, rows), on the calling thread when there is one block only.
template <Executor E, class Task>
void for_each_row_block(const E& executor, std::size_t rows, const Task& task) {
  constexpr std::size_t block_rows = 16;
  const auto run = [&](std::size_t block) {
    const std::size_t first = block * block_rows;
    task(RowBlock{.first = first, .count = rows - first < block_rows ? rows - first : block_rows});
  };
  if (rows <= block_rows) {
    if (rows != 0) run(0);
    return;
  }
  executor.for_each_index(divide_up(rows, block_rows), run);
}

}  // namespace CBQ_ABI
}  // namespace cbq
