#include "animdetail/parallel.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

namespace animdetail {
namespace {

int usable_processors() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return std::max(1u, std::thread::hardware_concurrency());
}

std::atomic<int> requested_threads{0};

}  // namespace

void set_num_threads(int count) { requested_threads = std::max(0, count); }

int num_threads() {
  const int requested = requested_threads;
  return requested > 0 ? requested : usable_processors();
}

void parallel_tasks(int64_t count, const std::function<void(const NextTask&)>& work) {
  std::atomic<int64_t> issued{0};
  std::exception_ptr failure;
  std::mutex failure_lock;

  const NextTask next = [&] {
    const int64_t task = issued.fetch_add(1, std::memory_order_relaxed);
    return task < count ? task : -1;
  };
  const auto run = [&] {
    try {
      work(next);
    } catch (...) {
      issued = count;
      const std::lock_guard<std::mutex> guard(failure_lock);
      if (!failure) failure = std::current_exception();
    }
  };

  // Threads live for one call: starting one costs some 20 us against calls of milliseconds, and there is no pool to
  // break at a fork or to stop at exit.
  std::vector<std::thread> helpers;
  try {
    for (int64_t i = 1; i < std::min<int64_t>(num_threads(), count); ++i) helpers.emplace_back(run);
  } catch (const std::system_error&) {
    // No more threads to be had: those that started, and this one, do all the work.
  }
  run();
  for (std::thread& helper : helpers) helper.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace animdetail
