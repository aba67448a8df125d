// Rows by their texts: a hash table that only grows, until it is written out and begun anew.
//
//   slots   tag and address of a row, or 0
//   arena   Row, its key │ Row, its key │ ...         key: window, then user, model, chip and labels with their sizes
//
// A row never moves. To look one up costs three reads from memory that nobody foresaw, so whoever looks many up asks
// for the first and the second one early (`fetch_slot`, `fetch_row`).
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "text.h"

namespace verify {

constexpr u64 ABSENT = ~u64{0};  // the size of a text that is absent

inline u64 mixed(u64 some, u64 others) {
  unsigned __int128 product = static_cast<unsigned __int128>(some) * others;
  return static_cast<u64>(product) ^ static_cast<u64>(product >> 64);
}

inline u64 hash_of(const u8* data, u64 size, u64 seed) {
  constexpr u64 odd = 0x9E3779B97F4A7C15, other = 0xB7E151628AED2A6B;  // of the golden ratio, of e
  u64 hash = mixed(seed ^ odd, size ^ other);
  u64 at = 0;
  for (; at + 8 <= size; at += 8) hash = mixed(hash ^ word_at(data + at), other);
  if (at < size) hash = mixed(hash ^ bytes_at(data + at, size - at), odd);
  return mixed(hash, odd);
}

inline u8* put_bytes(u8* at, Text text) {
  if (text.size) std::memcpy(at, text.data, text.size);
  return at + text.size;
}

// Bytes one after another. `room` gives a place for some; `end` says where they end.
class Bytes {
 public:
  u8* room(u64 size) {
    if (size > capacity_ - size_) grow(size);
    return data_.get() + size_;
  }
  void end(const u8* at) { size_ = static_cast<u64>(at - data_.get()); }
  const u8* data() const { return data_.get(); }
  u64 size() const { return size_; }
  void clear() { size_ = 0; }

 private:
  void grow(u64 size) {
    u64 wanted = 2 * (size_ + size);
    std::unique_ptr<u8[]> larger(new u8[wanted]);
    if (size_) std::memcpy(larger.get(), data_.get(), size_);
    data_ = std::move(larger);
    capacity_ = wanted;
  }
  std::unique_ptr<u8[]> data_;
  u64 size_ = 0, capacity_ = 0;
};

// A key: its window, and four texts.
inline u64 key_size(const Text* four) {
  u64 size = 8;
  for (u32 i = 0; i < 4; ++i) size += 8 + (four[i].size == ABSENT ? 0 : four[i].size);
  return size;
}

// Returns where it ends.
inline u8* put_key(u8* at, i64 window, const Text* four) {
  at = put_bytes(at, {reinterpret_cast<const u8*>(&window), 8});
  for (u32 i = 0; i < 4; ++i) {
    at = put_bytes(at, {reinterpret_cast<const u8*>(&four[i].size), 8});
    if (four[i].size != ABSENT) at = put_bytes(at, four[i]);
  }
  return at;
}

// What is after a text of a key.
inline const u8* take(const u8* at, Text* text) {
  *text = {at + 8, word_at(at)};
  return at + 8 + (text->size == ABSENT ? 0 : text->size);
}

// Memory that is given back all at once.
class Arena {
 public:
  u8* take(u64 size) {
    size = (size + 7) & ~u64{7};
    if (blocks_.empty() || size > left_) {
      left_ = size > BLOCK ? size : BLOCK;
      blocks_.emplace_back(new u8[left_]);
      bytes_ += left_;
      next_ = blocks_.back().get();
    }
    u8* taken = next_;
    next_ += size;
    left_ -= size;
    return taken;
  }
  u64 bytes() const { return bytes_; }

 private:
  static constexpr u64 BLOCK = 1 << 20;
  std::vector<std::unique_ptr<u8[]>> blocks_;
  u8* next_ = nullptr;
  u64 left_ = 0, bytes_ = 0;
};

// Payload: what a row holds beside its key; it is set to zero bytes.
template <typename Payload>
class Table {
 public:
  struct Row {
    u64 hash;
    u32 number, key_size;
    Payload payload;
    const u8* key() const { return reinterpret_cast<const u8*>(this + 1); }
  };

  Table() : slots_(1 << 10) {}

  void fetch_slot(u64 hash) const { __builtin_prefetch(&slots_[hash & (slots_.size() - 1)]); }
  void fetch_row(u64 hash) const {
    const char* row = reinterpret_cast<const char*>(row_of(slots_[hash & (slots_.size() - 1)]));
    for (u64 at = 0; at < sizeof(Row) + 64; at += 64) __builtin_prefetch(row + at, 1);
  }

  // Null where there is none.
  Row* find(const u8* key, u64 size, u64 hash) const {
    for (u64 at = hash;; ++at) {
      u64 slot = slots_[at & (slots_.size() - 1)];
      if (slot == 0) return nullptr;
      Row* row = row_of(slot);
      if (slot >> 48 == hash >> 48 && row->hash == hash && row->key_size == size &&
          std::memcmp(row->key(), key, size) == 0) {
        return row;
      }
    }
  }

  Row& at(const u8* key, u64 size, u64 hash) {
    Row* found = find(key, size, hash);
    if (found != nullptr) return *found;
    if (2 * (rows_.size() + 1) > slots_.size()) grow();
    Row* row = new (arena_.take(sizeof(Row) + size)) Row{};
    row->hash = hash;
    row->number = static_cast<u32>(rows_.size());
    row->key_size = static_cast<u32>(size);
    std::memcpy(reinterpret_cast<u8*>(row + 1), key, size);
    rows_.push_back(row);
    insert(row);
    return *row;
  }

  const std::vector<Row*>& rows() const { return rows_; }
  u64 bytes() const { return arena_.bytes() + 8 * (slots_.size() + rows_.capacity()); }

 private:
  // Addresses have 48 bits: the upper 16 of the hash stand before them.
  static Row* row_of(u64 slot) { return reinterpret_cast<Row*>(slot & ((u64{1} << 48) - 1)); }
  void insert(Row* row) {
    u64 slot = reinterpret_cast<u64>(row) | (row->hash >> 48 << 48);
    u64 at = row->hash;
    while (slots_[at & (slots_.size() - 1)] != 0) ++at;
    slots_[at & (slots_.size() - 1)] = slot;
  }
  void grow() {
    slots_.assign(2 * slots_.size(), 0);
    for (Row* row : rows_) insert(row);
  }

  std::vector<u64> slots_;
  std::vector<Row*> rows_;
  Arena arena_;
};

}  // namespace verify
