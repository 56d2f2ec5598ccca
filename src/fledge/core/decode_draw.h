// Drawing one token from a row of logits; sampling.py's draw() is the slow twin.
#pragma once
#include "decode_math.h"

struct Chooser { float temperature; int64_t top_k; float top_p; };  // temperature 0: greedy; top_k 0 and top_p 1: off

// the largest bit pattern b for which enough(b) holds; patterns of numbers in [0,1] are ordered like the numbers
template <class Enough> static int32_t largest(Enough enough) {
  int32_t low = 0, high = 0x3f800001;  // 1.0f and one more
  while (high - low > 1) {
    int32_t middle = low + (high - low) / 2;
    if (enough(middle)) low = middle; else high = middle;
  }
  return low;
}

// Everything less likely than the k-th most likely becomes 0 (ties with it stay).
static void keep_k(float *p, int64_t size, int64_t k) {
  int32_t border = largest([&](int32_t b) {
    Ints count = {};
    for (int64_t i = 0; i < size; i += LANES) count -= *(Ints *)(p + i) >= b;
    int64_t n = 0;
    for (int j = 0; j < LANES; j++) n += count[j];
    return n >= k;
  });
  for (int64_t i = 0; i < size; i += LANES) { Ints x = *(Ints *)(p + i); *(Ints *)(p + i) = x & (x >= border); }
}

static float mass(const float *p, int64_t size, int32_t from) {
  Floats sum = {};
  for (int64_t i = 0; i < size; i += LANES) { Ints x = *(const Ints *)(p + i); sum += (Floats)(x & (x >= from)); }
  return total(sum);
}

// Only the smallest set of most likely tokens whose mass reaches `share` of the whole stays.
static void keep_p(float *p, int64_t size, float share) {
  float wanted = share * mass(p, size, 0);
  int32_t border = largest([&](int32_t b) { return mass(p, size, b) >= wanted; });
  float have = mass(p, size, border + 1), each; memcpy(&each, &border, 4);
  for (int64_t i = 0; i < size; i++) {
    int32_t b; memcpy(&b, p + i, 4);
    if (b > border) continue;
    if (b == border && have < wanted) have += each; else p[i] = 0;  // of equals, the first ones
  }
}

// logits [vocab], up to `size`, a multiple of 16, filled with -inf; overwritten. Returns the token, *logp under what was
// drawn from; greedy: the first of the largest, its plain logp. uniform in [0,1): inverse of the cumulative distribution.
// A diverged model (all NaN) gets some token of the vocabulary and a logp that is not finite.
static int64_t draw(float *logits, int64_t vocab, int64_t size, const Chooser &how, float uniform, float *logp) {
  Floats tops = all(-INFINITY), sums = {};
  for (int64_t i = 0; i < size; i += LANES) { Floats x = *(Floats *)(logits + i); tops = x > tops ? x : tops; }
  float top = tops[0];
  for (int j = 1; j < LANES; j++) top = tops[j] > top ? tops[j] : top;
  if (how.temperature == 0) {
    int64_t token = 0;
    for (int64_t i = 0; i < size; i += LANES) sums += exp_of(*(Floats *)(logits + i) - top);
    while (token < vocab - 1 && logits[token] != top) token++;
    *logp = -logf(total(sums));
    return token;
  }
  bool plain = how.temperature == 1;
  for (int64_t i = 0; i < size; i += LANES) {
    Floats x = *(Floats *)(logits + i) - top;
    *(Floats *)(logits + i) = exp_of(plain ? x : x / how.temperature);
  }
  if (how.top_k > 0 && how.top_k < size) keep_k(logits, size, how.top_k);
  if (how.top_p < 1) keep_p(logits, size, how.top_p);
  constexpr int PIECE = 8 * LANES;  // find the piece by vector sums, then the token inside it
  double whole = 0;
  for (int64_t i = 0; i < size; i += PIECE) whole += mass(logits + i, size - i < PIECE ? size - i : PIECE, 0);
  double wanted = uniform * whole, reached = 0;
  int64_t last = -1, i = 0;
  for (; i < size; i += PIECE) {
    int64_t end = size - i < PIECE ? size : i + PIECE;
    double piece = mass(logits + i, end - i, 0);
    if (reached + piece <= wanted && end < size) { reached += piece; continue; }
    for (int64_t t = i; t < end; t++) {
      if (logits[t] > 0) last = t;
      reached += logits[t];
      if (reached > wanted && last == t) { i = size; break; }
    }
  }
  if (last < 0) for (last = size - 1; last > 0 && !(logits[last] > 0);) last--;  // rounding went past the last one
  *logp = logf((float)(logits[last] / whole));
  return last;
}
