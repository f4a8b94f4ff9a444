// A fixed set of threads that share numbered pieces of work.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace fm {

class ThreadPool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls piece(context, i) once for every i in [0, pieces), on the workers and the caller; returns
  // when all are done. Pieces must not throw. A call from inside a piece runs its pieces on the
  // calling thread.
  void run(std::int64_t pieces, void (*piece)(void* context, std::int64_t index), void* context);

 private:
  struct Job {
    std::int64_t pieces = 0, next = 0, left = 0;
    void (*piece)(void*, std::int64_t) = nullptr;
    void* context = nullptr;
  };
  void work();
  void take_pieces(std::unique_lock<std::mutex>& lock);

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  Job job_;
  bool stop_ = false;
  std::vector<std::thread> workers_;
};

}  // namespace fm
