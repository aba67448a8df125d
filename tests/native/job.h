// A Job over ordinary memory, for the drivers beside this file: what engine.py sets up, once more and smaller.
#pragma once
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>
#include "host.cpp"

static std::string read_file(const char* path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    fprintf(stderr, "cannot read %s\n", path);
    exit(2);
  }
  return std::string(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
}

// Zeroed memory, aligned as the engine's tables are; freed with the process.
template <class T>
static T* table(u64 count) {
  void* memory = aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64);
  memset(memory, 0, (count * sizeof(T) + 63) / 64 * 64);
  return (T*)memory;
}

static const Plan* read_plan(const char* path) {
  const std::string bytes = read_file(path);
  if (bytes.size() != sizeof(Plan)) {
    fprintf(stderr, "%s is no plan of this build\n", path);
    exit(3);
  }
  Plan* plan = table<Plan>(1);
  memcpy((void*)plan, bytes.data(), sizeof(Plan));
  return plan;
}

// | prefix | lines, each ended by a newline | 64 newlines |, and not a byte more, so that a sanitizer sees any further
// read; `respelled`: and | their other spelling | 64 spare |
static u8* make_buffer(const std::string& prefix, const char* lines, size_t length, bool respelled) {
  u8* buffer = (u8*)malloc(PREFIX_BYTES + (respelled ? 2 : 1) * (length + PADDING_BYTES));
  memset(buffer, 0, PREFIX_BYTES);
  memcpy(buffer, prefix.data(), prefix.size());
  memcpy(buffer + PREFIX_BYTES, lines, length);
  memset(buffer + PREFIX_BYTES + length, '\n', PADDING_BYTES);
  return buffer;
}

static u8* respelled_in(u8* buffer, size_t length) { return buffer + PREFIX_BYTES + length + PADDING_BYTES; }

static void open_job(Job& job, const Plan* plan) {
  memset((void*)&job, 0, sizeof job);
  job.plan = plan;
  job.fill = table<u64>(FILLS);
  for (u32 i = 0; i < 8; ++i) job.secret[i] = 0x9e3779b97f4a7c15ull * (i + 1);
  job.window_ms = 60000;
  job.windows_per_ms = 1.0 / 60000;
  job.future_skew_ms = 3600000;
  job.epoch = 1;
}

// Of so many slots each, all but the sketches' windows.
static void open_tables(Job& job, u32 slots, u32 windows, u64 arena_bytes) {
  job.identities = table<Identity>(slots);
  job.texts = table<TextEntry>(slots);
  job.cells = table<Cell>(slots);
  job.rows = table<Row>(slots);
  job.windows = table<Window>(windows);
  job.registers = table<u32>((u64)windows * SKETCH_REGISTERS / 4);
  job.arena = table<u8>(arena_bytes);
  job.text_order = table<u32>(slots);
  job.cell_order = table<u32>(slots);
  job.window_order = table<u32>(windows);
  job.changed = table<u32>(slots);
  job.identities_mask = job.texts_mask = job.cells_mask = job.rows_mask = slots - 1;
  job.windows_mask = windows - 1;
  job.windows_limit = windows / 2;
}
