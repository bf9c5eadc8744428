// SPDX-License-Identifier: Apache-2.0
#pragma once

// ggml's threads as an executor of cbq. ggml calls an operator on all of its threads at once, each with its index: one
// of them leads and calls cbq, the others follow and run the tasks that cbq hands out, each a contiguous share. cbq
// cuts work by shape, so results do not depend on the number of threads. Nothing allocates, and nobody sleeps: an
// operator takes microseconds to milliseconds, and ggml's own threads wait in the same way.

#include <atomic>
#include <cstddef>
#include <thread>
#include <type_traits>

#include <cbq/core/executor.hpp>

namespace cbq_ggml {

/// What the threads of one operator share. Used by one graph at a time.
class Team {
 public:
  /// Calls body(executor) on the thread with index 0; the others help until it returns. To be called by all `threads`
  /// threads of ggml, as an operator is.
  template <class Body>
  void run(int index, int threads, const Body& body);

 private:
  friend class TeamExecutor;
  using Run = void (*)(const void* task, std::size_t index);
  struct Work {
    Run run = nullptr;  ///< null: the operator is done
    const void* task = nullptr;
    std::size_t count = 0;
  };

  /// Publishes work, does share 0 of it, and waits until all shares are done.
  void lead(const Work& work, int threads) {
    work_ = work;
    done_.store(0, std::memory_order_relaxed);
    round_.fetch_add(1, std::memory_order_release);
    do_share(work, 0, threads);
    wait([&] { return done_.load(std::memory_order_acquire) == threads - 1; });
  }

  void follow(int index, int threads) {
    for (int round = 1;; ++round) {
      wait([&] { return round_.load(std::memory_order_acquire) == round; });
      const Work work = work_;
      do_share(work, index, threads);
      done_.fetch_add(1, std::memory_order_release);
      if (work.run == nullptr) return;
    }
  }

  static void do_share(const Work& work, int index, int threads) {
    const auto share = static_cast<std::size_t>(index);
    const auto shares = static_cast<std::size_t>(threads);
    if (work.run == nullptr) return;
    for (std::size_t i = work.count * share / shares; i < work.count * (share + 1) / shares; ++i)
      work.run(work.task, i);
  }

  template <class Condition>
  static void wait(const Condition& condition) {
    // Processors may be fewer than threads: after some microseconds, let others run.
    for (int turn = 0; !condition(); ++turn) {
      if (turn > 4096) std::this_thread::yield();
    }
  }

  Work work_;
  std::atomic<int> round_ = 0;  ///< works published by the operator that runs
  std::atomic<int> done_ = 0;   ///< followers that did their share of the last one
};

/// For cbq's calls inside of Team::run().
class TeamExecutor {
 public:
  TeamExecutor(Team& team, int threads) : team_(team), threads_(threads) {}

  [[nodiscard]] std::size_t concurrency() const noexcept { return static_cast<std::size_t>(threads_); }

  template <class Task>
  void for_each_index(std::size_t count, Task&& task) const {
    if (count <= 1 || threads_ == 1) {
      for (std::size_t i = 0; i < count; ++i) task(i);
      return;
    }
    using Type = std::remove_reference_t<Task>;
    const Team::Run run = [](const void* pointer, std::size_t i) {
      (*const_cast<Type*>(static_cast<const Type*>(pointer)))(i);
    };
    team_.lead({run, &task, count}, threads_);
  }

 private:
  Team& team_;
  int threads_;
};

static_assert(cbq::Executor<TeamExecutor>);

template <class Body>
void Team::run(int index, int threads, const Body& body) {
  if (index != 0) return follow(index, threads);
  body(TeamExecutor(*this, threads));
  if (threads == 1) return;
  lead({}, threads);
  round_.store(0, std::memory_order_relaxed);  // ggml's barrier behind every operator publishes it
}

}  // namespace cbq_ggml
