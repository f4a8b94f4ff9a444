#include "kernels/base/thread_pool.h"

namespace fm {
namespace {
thread_local bool inside_piece = false;
}

ThreadPool::ThreadPool(int threads) {
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void ThreadPool::run(std::int64_t pieces, void (*piece)(void*, std::int64_t), void* context) {
  if (pieces <= 1 || workers_.empty() || inside_piece) {
    for (std::int64_t i = 0; i < pieces; ++i) piece(context, i);
    return;
  }
  std::unique_lock lock(mutex_);
  job_ = {pieces, 0, pieces, piece, context};
  wake_.notify_all();
  take_pieces(lock);
  done_.wait(lock, [this] { return job_.left == 0; });
}

void ThreadPool::work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return stop_ || job_.next < job_.pieces; });
    if (stop_) return;
    take_pieces(lock);
  }
}

// A piece is long next to a lock (microseconds at the least), so a mutex serves as the counter.
void ThreadPool::take_pieces(std::unique_lock<std::mutex>& lock) {
  while (job_.next < job_.pieces) {
    const std::int64_t index = job_.next++;
    const auto piece = job_.piece;
    void* const context = job_.context;
    lock.unlock();
    inside_piece = true;
    piece(context, index);
    inside_piece = false;
    lock.lock();
    if (--job_.left == 0) done_.notify_all();
  }
}

}  // namespace fm
