// One step of the Transformer (model.py) over a list of rows (slot, position, token); decode.cpp includes it.
// Letters: D width, H query heads, K key/value heads, E head width, F feed-forward width, V vocabulary.
#pragma once
#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>
#include "decode_math.h"

struct Model {  // float32 pointers are the live parameters, void ones packed copies
  int64_t layers, width, heads, kv_heads, head_width, ffn, vocab;
  double eps;
  const float *embedding, *norm, *cos, *sin;  // cos, sin [positions][E/2]
  const void *head;
  const void *const *parts;  // per layer: PARTS pointers in the order of the enum
};
enum { ATTENTION_NORM, QKV, QKV_BIAS, Q_NORM, K_NORM, OUT, FFN_NORM, GATE_UP, DOWN, PARTS };

struct Store { void *keys, *values; int64_t positions; };  // [slots][layers][kv heads] blocks, positions a multiple of 16
struct Row { int64_t slot, position, token, wanted; };     // wanted: its logits are asked for

template <class T> struct Cache {
  typedef typename T::Unit Unit;
  Unit *keys, *values;
  int64_t layers, heads, key_block, value_block, units, width;
  Cache(const Model &m, const Store &s) : keys((Unit *)s.keys), values((Unit *)s.values), layers(m.layers), heads(m.kv_heads) {
    units = m.head_width / T::PER; width = up(m.head_width, LANES);
    key_block = s.positions * units; value_block = s.positions / T::PER * width;
  }
  Unit *key(int64_t slot, int64_t layer, int64_t head) const { return keys + ((slot * layers + layer) * heads + head) * key_block; }
  Unit *value(int64_t slot, int64_t layer, int64_t head) const { return values + ((slot * layers + layer) * heads + head) * value_block; }
  void copy(int64_t from, int64_t to, int64_t length) const {  // the first `length` positions of a slot
    for (int64_t l = 0; l < layers; l++)
      for (int64_t h = 0; h < heads; h++) {
        memcpy(key(to, l, h), key(from, l, h), up(length, LANES) * units * sizeof(Unit));
        memcpy(value(to, l, h), value(from, l, h), up(length, T::PER) / T::PER * width * sizeof(Unit));
      }
  }
};

class Barrier {  // spins a little, then lets others run: a neighbour on the core must not cost a time slice
  std::atomic<int> waiting{0}, phase{0};
public:
  int size = 1;
  void wait() {
    if (size == 1) return;
    int now = phase.load(std::memory_order_acquire);
    if (waiting.fetch_add(1, std::memory_order_acq_rel) == size - 1) {
      waiting.store(0, std::memory_order_relaxed);
      phase.store(now + 1, std::memory_order_release);
    } else
      for (int spins = 0; phase.load(std::memory_order_acquire) == now; spins++) if (spins > 4000) std::this_thread::yield();
  }
};

struct Member {  // one thread of a team
  int rank, size; Barrier *barrier;
  int64_t first(int64_t n) const { return n * rank / size; }
  int64_t last(int64_t n) const { return n * (rank + 1) / size; }
};

template <class T> struct Work {  // buffers of one team, for at most `rows` rows
  typedef typename T::Unit Unit;
  int64_t wide, qkv_wide, inner_wide, vocab_wide;
  std::vector<float> x, qkv, logits;  // [rows][D], [rows][(H+2K)E], [wanted][V], each rounded up to whole panels
  std::vector<Unit> mixed, inner;     // [rows][HE], [rows][F]: what the next product reads
  Work(const Model &m, int64_t rows) {
    wide = up(m.width, PANEL); qkv_wide = up((m.heads + 2 * m.kv_heads) * m.head_width, PANEL);
    inner_wide = up(m.ffn, LANES) / T::PER; vocab_wide = up(m.vocab, PANEL);
    x.resize(rows * wide); qkv.resize(rows * qkv_wide); mixed.resize(rows * up(m.heads * m.head_width, PANEL) / T::PER); inner.resize(rows * inner_wide);
  }
};

template <class T> struct Own {  // buffers of one thread
  typedef typename T::Unit Unit;
  int64_t room;
  std::vector<Unit> normed, q, chances;
  std::vector<float> head, out, scores;
  Own(const Model &m, int64_t rows, int64_t positions) : room(positions) {
    int64_t group = m.heads / m.kv_heads, width = up(m.head_width, LANES);
    normed.resize(rows * m.width / T::PER); q.resize(group * m.head_width); chances.resize(4 * room);
    head.resize(up(m.width, PANEL)); out.resize(group * width); scores.resize(4 * room);
  }
};

static void norm_into(const float *x, const float *gain, double eps, int64_t n, float *out) {
  float sum = 0;
  #pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) sum += x[i] * x[i];
  float scale = 1.0f / sqrtf(sum / n + (float)eps);
  #pragma omp simd
  for (int64_t i = 0; i < n; i++) out[i] = x[i] * scale * gain[i];
}

// One head of a fused projection: bias, norm if the model has it, rotation to its position, times m.
template <class T>
static void prepare(const float *from, const float *bias, const float *gain, const Model &model, const float *cos,
                    const float *sin, float m, float *out) {
  int64_t E = model.head_width, half = E / 2;
  for (int64_t i = 0; i < E; i++) out[i] = from[i] + (bias ? T::rounded(bias[i]) : 0.0f);
  if (gain) norm_into(out, gain, model.eps, E, out);
  if (!cos) return;
  #pragma omp simd
  for (int64_t i = 0; i < half; i++) {
    float a = out[i] * m, b = out[i + half] * m;
    out[i] = a * cos[i] - b * sin[i]; out[i + half] = b * cos[i] + a * sin[i];
  }
}

// Keys and values of one row go to the cache, its queries look at every position up to its own: [HE] to `mixed`, if not null.
template <class T>
static void look(const Model &m, const void *const *parts, const Cache<T> &cache, const Row &row, int64_t layer, int64_t head,
                 const float *qkv, typename T::Unit *mixed, Own<T> &own) {
  int64_t E = m.head_width, group = m.heads / m.kv_heads, at = row.position, width = cache.width;
  const float *bias = (const float *)parts[QKV_BIAS], *cos = m.cos + at * (E / 2), *sin = m.sin + at * (E / 2);
  auto keys = cache.key(row.slot, layer, head), values = cache.value(row.slot, layer, head);
  float *work = own.head.data();
  auto biased = [&](int64_t h) { return bias ? bias + h * E : nullptr; };
  int64_t h = m.heads + head;
  prepare<T>(qkv + h * E, biased(h), (const float *)parts[K_NORM], m, cos, sin, 1.0f, work);
  auto panel = keys + at / LANES * cache.units * LANES + at % LANES;
  typename T::Unit *packed = own.q.data();
  T::store(work, packed, E);
  for (int64_t e = 0; e < cache.units; e++) panel[e * LANES] = packed[e];
  h += m.kv_heads;
  prepare<T>(qkv + h * E, biased(h), nullptr, m, nullptr, nullptr, 1.0f, work);
  auto pair = values + at / T::PER * width;
  for (int64_t i = 0; i < E; i++) T::set(pair + i, at % T::PER, work[i]);
  if (!mixed) return;
  float *out = own.out.data();
  for (int64_t g = 0; g < group; g++) {
    h = head * group + g;
    prepare<T>(qkv + h * E, biased(h), (const float *)parts[Q_NORM], m, cos, sin, 1.0f / sqrtf((float)E), work);
    T::store(work, packed + g * cache.units, E);
  }
  for (int64_t g = 0; g < group;) {
    auto run = [&](auto attend_group, int64_t count) {
      attend_group(packed + g * cache.units, keys, values, at + 1, cache.units, width, own.scores.data(), own.chances.data(), own.room, out + g * width);
      g += count;
    };
    if (group - g >= 4) run(attend<T, 4>, 4);
    else if (group - g >= 2) run(attend<T, 2>, 2);
    else run(attend<T, 1>, 1);
  }
  for (int64_t g = 0; g < group; g++) T::store(out + g * width, mixed + (head * group + g) * E / T::PER, E);
}

template <class T> static void norm_rows(const float *x, int64_t wide, const float *gain, const Model &m, int64_t rows, Own<T> &own) {
  for (int64_t r = 0; r < rows; r++) {
    norm_into(x + r * wide, gain, m.eps, m.width, own.head.data());
    T::store(own.head.data(), own.normed.data() + r * m.width / T::PER, m.width);
  }
}

// One layer over the rows in w.x. The last one only leaves keys and values of rows nobody wants: the others move up.
// Returns how many rows there are now.
template <class T>
static int64_t block(const Model &m, int64_t layer, const Cache<T> &cache, const Row *rows, int64_t count, Work<T> &w, Own<T> &own,
                  const Member &me) {
  typedef const typename T::Unit *Packed;
  const void *const *parts = m.parts + layer * PARTS;
  int64_t D = m.width / T::PER, HE = m.heads * m.head_width / T::PER, wide = w.wide, panels = wide / PANEL, qkv_panels = w.qkv_wide / PANEL;
  int64_t inner_panels = up(m.ffn, LANES) / LANES, F = up(m.ffn, T::PER) / T::PER;
  auto add = [&](int64_t r, int64_t p, const float *sum) {
    float *x = w.x.data() + r * wide + p * PANEL;
    for (int c = 0; c < PANEL; c++) x[c] += sum[c];
  };
  norm_rows(w.x.data(), wide, (const float *)parts[ATTENTION_NORM], m, count, own);
  multiply<T>((Packed)parts[QKV], me.first(qkv_panels), me.last(qkv_panels), D, own.normed.data(), D, count,
              [&](int64_t r, int64_t p, const float *sum) { memcpy(w.qkv.data() + r * w.qkv_wide + p * PANEL, sum, PANEL * 4); });
  me.barrier->wait();
  int64_t kept = 0;
  for (int64_t r = 0; r < count; r++) {
    bool needed = layer + 1 < m.layers || rows[r].wanted;
    for (int64_t head = me.first(m.kv_heads); head < me.last(m.kv_heads); head++)
      look<T>(m, parts, cache, rows[r], layer, head, w.qkv.data() + r * w.qkv_wide, needed ? w.mixed.data() + kept * HE : nullptr, own);
    if (needed && me.rank == 0 && kept < r) memcpy(w.x.data() + kept * wide, w.x.data() + r * wide, wide * 4);
    kept += needed;
  }
  count = kept;
  me.barrier->wait();
  multiply<T>((Packed)parts[OUT], me.first(panels), me.last(panels), HE, w.mixed.data(), HE, count, add);
  me.barrier->wait();
  norm_rows(w.x.data(), wide, (const float *)parts[FFN_NORM], m, count, own);
  multiply<T>((Packed)parts[GATE_UP], me.first(inner_panels), me.last(inner_panels), D, own.normed.data(), D, count,
              [&](int64_t r, int64_t p, const float *sum) {
                Floats gate = *(const Floats *)sum, up_part = *(const Floats *)(sum + LANES);
                float inner[LANES]; *(Floats *)inner = gate / (1.0f + exp_of(-gate)) * up_part;
                T::store(inner, w.inner.data() + r * w.inner_wide + p * LANES / T::PER, LANES);
              });
  me.barrier->wait();
  multiply<T>((Packed)parts[DOWN], me.first(panels), me.last(panels), F, w.inner.data(), w.inner_wide, count, add);
  me.barrier->wait();
  return count;
}

// Run rows through the model; logits of the wanted ones, in order, to w.logits [wanted][vocab_wide], padding -inf.
template <class T>
static void forward(const Model &m, const Cache<T> &cache, const Row *rows, int64_t count, Work<T> &w, Own<T> &own, const Member &me) {
  int64_t D = m.width, wide = w.wide, wanted = 0;
  for (int64_t r = me.first(count); r < me.last(count); r++) {
    float *x = w.x.data() + r * wide; const float *from = m.embedding + rows[r].token * D;
    for (int64_t i = 0; i < D; i++) x[i] = T::rounded(from[i]);
    for (int64_t i = D; i < wide; i++) x[i] = 0;
  }
  me.barrier->wait();
  for (int64_t layer = 0; layer < m.layers; layer++) wanted = block<T>(m, layer, cache, rows, count, w, own, me);
  norm_rows(w.x.data(), wide, m.norm, m, wanted, own);
  if (me.rank == 0 && (int64_t)w.logits.size() < wanted * w.vocab_wide) w.logits.resize(wanted * w.vocab_wide);
  me.barrier->wait();
  int64_t panels = w.vocab_wide / PANEL;
  multiply<T>((const typename T::Unit *)m.head, me.first(panels), me.last(panels), D / T::PER, own.normed.data(), D / T::PER, wanted,
              [&](int64_t r, int64_t p, const float *sum) {
                float *to = w.logits.data() + r * w.vocab_wide + p * PANEL;
                memcpy(to, sum, PANEL * 4);
                for (int64_t v = m.vocab; v < (p + 1) * PANEL; v++) if (v >= p * PANEL) to[v - p * PANEL] = -INFINITY;
              });
  me.barrier->wait();
}
