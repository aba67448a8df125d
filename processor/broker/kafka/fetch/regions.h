// Memory for the values of an answer, laid out as an engine's batch (kernels/layout.h): an engine that shares our
// memory counts them where they are.
//
//   | prefix | values | padding | their other spelling | padding | referee's text | padding |
//
// A region that is given back is kept with the pages of its values, so that these are taken once. What an engine has
// written after them, a few lines, goes back to the system. At worst each megabyte that waits (parts.py) is in a region
// of its own, whose values once took six.
#pragma once
#include <sys/mman.h>

#include <cstdint>
#include <mutex>
#include <vector>

#include "../../../../kernels/layout.h"

#ifndef REGION_SPACE_BYTES  // smaller in a test
#define REGION_SPACE_BYTES (6 << 20)
#endif
constexpr size_t REGION_SPACE = REGION_SPACE_BYTES;  // as much as a batch of the default size
constexpr size_t REGION_BYTES = tokenometer::PREFIX_BYTES + 3 * (REGION_SPACE + tokenometer::PADDING_BYTES);
// Fewer values are copied out: many of them may wait, and a region has pages of 2 MiB.
constexpr size_t REGION_LEAST = REGION_SPACE / 6;

class Regions {
 public:
  // Null: there is no memory.
  static uint8_t* take() {
    {
      const std::lock_guard<std::mutex> held(all().lock_);
      std::vector<uint8_t*>& free = all().free_;
      if (!free.empty()) {
        uint8_t* region = free.back();
        free.pop_back();
        return region;
      }
    }
    void* region = mmap(nullptr, REGION_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (region == MAP_FAILED) return nullptr;
#ifdef MADV_HUGEPAGE
    madvise(region, KEPT_BYTES, MADV_HUGEPAGE);
#endif
    return static_cast<uint8_t*>(region);
  }

  static void give_back(uint8_t* region) {
    madvise(region + KEPT_BYTES, REGION_BYTES - KEPT_BYTES, MADV_DONTNEED);
    const std::lock_guard<std::mutex> held(all().lock_);
    all().free_.push_back(region);
  }

 private:
  static constexpr size_t PAGE_BYTES = 4096;
  static constexpr size_t KEPT_BYTES =
      (tokenometer::PREFIX_BYTES + REGION_SPACE + tokenometer::PADDING_BYTES + PAGE_BYTES - 1) / PAGE_BYTES *
      PAGE_BYTES;

  static Regions& all() {
    static Regions* const made = new Regions;  // never destroyed: threads may read while the process ends
    return *made;
  }

  std::mutex lock_;
  std::vector<uint8_t*> free_;
};
