#pragma once

#include <cstdint>
#include <functional>

namespace animdetail {

// Threads that the ops use; 0 asks for one per processor that this process may run on.
void set_num_threads(int count);
int num_threads();

// Hands out 0 .. count - 1, each once, to whoever asks next; -1 when there are no more.
using NextTask = std::function<int64_t()>;

// Runs `work` on up to num_threads() threads, the calling one among them. Each call of `work` is one worker: it takes
// its scratch memory once and then loops over the tasks that it is handed. The first exception is rethrown here.
void parallel_tasks(int64_t count, const std::function<void(const NextTask&)>& work);

}  // namespace animdetail
