// Lines read ahead, on a CPU of several cores: while a tile is counted, a second thread reads lines of the next batch,
// in blocks. Then the thread that has counted reads those that are left. So it waits for no thread that got no core,
// but for the end of a block.
#pragma once
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>
#include "parse.h"

namespace tokenometer {

constexpr u32 BLOCK_LINES = 256;  // some 50 us

static void read_lines(const Job* shared, u32 first, u32 begin, u32 end) {
  const Job job = *shared;  // see host.cpp
  for (u32 i = begin; i < end; ++i) parse_line(job, first, i);
}

// The second thread, and what it shares with the first: one caller of `begin` and `end`, always in this order.
class Ahead {
 public:
  Ahead() : thread_([this] { work(); }) {}
  ~Ahead() {
    {
      const std::lock_guard<std::mutex> held(lock_);
      ending_ = true;
    }
    wake_.notify_one();
    thread_.join();
  }

  // Begins to read the first lines. Until `end` nobody else may touch what `parse` writes for this job.
  void begin(const Job* job, u32 lines) {
    {
      const std::lock_guard<std::mutex> held(lock_);
      job_ = job;
      lines_ = lines;
      next_.store(0, std::memory_order_relaxed);
      wanted_ = true;
    }
    wake_.notify_one();
  }
  // Returns when all of them are read, as if one thread had done it; but doubtful ones are in no order.
  void end() {
    read(job_);
    std::unique_lock<std::mutex> held(lock_);
    wanted_ = false;
    done_.wait(held, [this] { return !reading_; });
    take_over();
  }

 private:
  void work() {
    std::unique_lock<std::mutex> held(lock_);
    for (;;) {
      wake_.wait(held, [this] { return wanted_ || ending_; });
      if (ending_) return;
      wanted_ = false;
      reading_ = true;
      // What lines add to is its own; what they become is written where it belongs.
      if (doubtful_.size() < lines_) doubtful_.resize(lines_);
      Job job = *job_;
      job.fill = fill_;
      job.doubtful = doubtful_.data();
      held.unlock();
      read(&job);
      held.lock();
      reading_ = false;
      done_.notify_one();
    }
  }
  void read(const Job* job) {
    for (u32 at; (at = next_.fetch_add(BLOCK_LINES, std::memory_order_relaxed)) < lines_;)
      read_lines(job, 0, at, lines_ - at < BLOCK_LINES ? lines_ : at + BLOCK_LINES);
  }
  void take_over() {
    u64* fill = job_->fill;
    for (u64 k = 0; k < fill_[FILL_DOUBTFUL]; ++k) job_->doubtful[fill[FILL_DOUBTFUL]++] = doubtful_[k];
    raise_to(&fill[FILL_WATERMARK], fill_[FILL_WATERMARK]);
    fill_[FILL_DOUBTFUL] = fill_[FILL_WATERMARK] = 0;
  }

  std::mutex lock_;
  std::condition_variable wake_, done_;
  bool wanted_ = false, reading_ = false, ending_ = false;
  const Job* job_ = nullptr;
  u32 lines_ = 0;
  std::atomic<u32> next_{0};
  u64 fill_[FILLS] = {};
  std::vector<u32> doubtful_;
  std::thread thread_;  // the last one: it begins when all else is there
};

}  // namespace tokenometer
