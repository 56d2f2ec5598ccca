// Answers that join and leave between calls, each with its own prompt, sampling, uniforms, limit and buffers.
// generate/native_decoder.py's NativeSlots calls it; TorchSlots is the slow twin.
#pragma once
#include "decode_slots.h"

template <class T> struct Live : Slots<T> {
  using Slots<T>::Slots;

  // Start an answer; the first `held` positions of its prompt are in the cache, in slot `source`.
  void join(int64_t s, const Writing &text, int64_t held, int64_t source) {
    if (source != s) this->cache.copy(source, s, held);
    this->slots[s].begin(text, held);
  }

  // At most `steps` steps, none of which begins more than `seconds` from now but the first.
  void go(int64_t steps, double seconds, int64_t count, int64_t threads) {
    std::vector<Slot *> busy;
    for (auto &slot : this->slots) if (slot.busy) busy.push_back(&slot);
    if (busy.empty()) return;
    this->divide(busy, count);
    this->deadline = now() + (int64_t)(std::min(seconds, 1e6) * 1e9);
    Slots<T>::go(steps, count, threads);
  }
};
