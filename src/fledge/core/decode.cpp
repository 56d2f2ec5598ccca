// Decoding of the Transformer (model.py) on a CPU, the whole loop: embedding, blocks, head, drawing, stop tokens, free slots
// refilled from the queue of prompts. generate/native_decoder.py calls it; generate/torch_decoder.py is the slow twin.
#include "decode_live.h"
#include "decode_score.h"

struct Job {  // answer a belongs to prompt a / samples
  const int64_t *prompts, *starts;  // tokens of all prompts, prompt p at starts[p]..starts[p + 1]
  int64_t answers, samples, longest;
  const int64_t *limits;            // [answers] most tokens
  const float *uniforms;            // [answers][longest]; null if greedy
  const uint8_t *stops;             // [vocab] 1 = ends the answer
  double temperature, top_p; int64_t top_k;
  int64_t slots, chunk;             // chunk: most rows of a step
  int64_t *tokens; float *logp; int64_t *lengths; uint8_t *stopped;  // [answers][longest] x 2, [answers] x 2
};

template <class T> struct Run : Slots<T> {
  Job job; int64_t count;
  std::atomic<int64_t> next{0};

  Run(const Model &m, const Store &store, const Job &j, int64_t count) : Slots<T>(m, store, j.stops, j.slots, j.chunk), job(j), count(count) {
    std::vector<Slot *> every;
    for (auto &slot : this->slots) every.push_back(&slot);
    this->divide(every, count);
  }

  int64_t length(int64_t prompt) const { return job.starts[prompt + 1] - job.starts[prompt]; }

  Writing writing(int64_t answer) const {
    int64_t prompt = answer / job.samples, place = answer * job.longest;
    return {job.prompts + job.starts[prompt], length(prompt), job.limits[answer], job.uniforms ? job.uniforms + place : nullptr,
            job.temperature, job.top_p, job.top_k, job.tokens + place, job.logp + place, job.lengths + answer, job.stopped + answer};
  }

  // Give free slots the next answers; a prompt that another slot holds is copied but for its last token.
  void refill(Team<T> &team) override {
    for (Slot *slot : team.slots) take(*slot);
    int64_t idle = 0;
    for (Slot *slot : team.slots) idle += !slot->busy;
    if (idle == 0 || next.load(std::memory_order_relaxed) >= job.answers) return;
    int64_t answer = next.fetch_add(idle), end = std::min(answer + idle, job.answers);
    for (Slot *slot : team.slots) {
      if (slot->busy || answer >= end) continue;
      int64_t prompt = answer / job.samples;
      bool kept = slot->prompt == prompt;
      slot->begin(writing(answer++), kept ? std::min(slot->fed, length(prompt) - 1) : 0);
      slot->prompt = prompt;
      if (kept) continue;
      for (Slot *other : team.slots)
        if (other != slot && other->prompt == prompt && !other->source) { slot->source = other; break; }
      take(*slot);
    }
  }

  void take(Slot &slot) {  // from its source, if that has read so far
    int64_t wanted = slot.text.read - 1;
    if (!slot.source || slot.source->fed < wanted) return;
    slot.fed = wanted;
    this->cache.copy(slot.source->index, slot.index, wanted);
    slot.source = nullptr;
  }
};

// Logits [wanted][vocab] of a list of rows: one step of a caller that draws by itself.
template <class T>
static void forward_all(const Model &m, const Store &store, const Row *rows, int64_t count, float *logits, int64_t chunk, int64_t threads) {
  Cache<T> cache(m, store);
  Work<T> work(m, std::min(chunk, count));
  Barrier barrier;
  #pragma omp parallel num_threads(threads)
  {
    #pragma omp single
    barrier.size = omp_get_num_threads();
    Member me{omp_get_thread_num(), barrier.size, &barrier};
    Own<T> own(m, std::min(chunk, count), store.positions);
    float *out = logits;
    for (int64_t r = 0; r < count; r += chunk) {
      int64_t size = std::min(chunk, count - r), wanted = 0;
      forward<T>(m, cache, rows + r, size, work, own, me);
      for (int64_t i = 0; i < size; i++) wanted += rows[r + i].wanted;
      for (int64_t i = me.rank; i < wanted; i += me.size) memcpy(out + i * m.vocab, work.logits.data() + i * work.vocab_wide, m.vocab * 4);
      out += wanted * m.vocab;
      barrier.wait();
    }
  }
}

// A different number for different weights, whoever changed them: autograd's counters miss writes through .data.
extern "C" uint64_t fingerprint(const uint32_t *x, int64_t n) {
  constexpr int64_t PIECE = 1 << 16;
  int64_t pieces = (n + PIECE - 1) / PIECE;
  std::vector<uint64_t> part(pieces);
  #pragma omp parallel for schedule(static)
  for (int64_t p = 0; p < pieces; p++) {
    Words h[4] = {}; int64_t i = p * PIECE, end = std::min(n, i + PIECE);
    for (int j = 0; j < 4; j++) for (int k = 0; k < LANES; k++) h[j][k] = 0x9e3779b9u * (j * LANES + k + 1);
    for (; i + 64 <= end; i += 64)
      for (int j = 0; j < 4; j++) { h[j] = (h[j] ^ *(const Words *)(x + i + j * LANES)) * 0x85ebca6bu; h[j] ^= h[j] >> 15; }
    for (int64_t k = 0; i < end; i++, k++) { h[0][k % LANES] = (h[0][k % LANES] ^ x[i]) * 0x85ebca6bu; h[0][k % LANES] ^= h[0][k % LANES] >> 15; }
    for (int j = 0; j < 4; j++) for (int k = 0; k < LANES; k++) part[p] = (part[p] ^ h[j][k]) * 0x9e3779b97f4a7c15ull, part[p] ^= part[p] >> 29;
  }
  uint64_t whole = n;
  for (uint64_t p : part) { whole = (whole ^ p) * 0x9e3779b97f4a7c15ull; whole ^= whole >> 32; }
  return whole;
}

extern "C" void draw_rows(float *logits, int64_t rows, int64_t vocab, double temperature, int64_t top_k, double top_p,
                          const float *uniforms, int64_t *tokens, float *logp) {
  int64_t size = up(vocab, LANES);
  Chooser how{(float)temperature, top_k, (float)top_p};
  std::vector<float> row(size, -INFINITY);
  for (int64_t r = 0; r < rows; r++) {
    memcpy(row.data(), logits + r * vocab, vocab * 4);
    for (int64_t v = vocab; v < size; v++) row[v] = -INFINITY;
    tokens[r] = draw(row.data(), vocab, size, how, uniforms[r], logp + r);
  }
}

#define BOTH(T, name)                                                                                                        \
  extern "C" void pack_##name(const float *w, void *out, int64_t N, int64_t K, int64_t gated) { pack<T>(w, (T::Unit *)out, N, K, gated); } \
  extern "C" void forward_##name(const Model *m, const Store *s, const Row *rows, int64_t n, float *logits, int64_t chunk,   \
                                 int64_t threads) { forward_all<T>(*m, *s, rows, n, logits, chunk, threads); }               \
  extern "C" void score_##name(const Model *m, const Store *s, const Row *rows, const int64_t *starts, int64_t pieces,       \
                               const Questions *q, int64_t chunk, int64_t threads) {                                         \
    score_pieces<T>(*m, *s, rows, starts, pieces, *q, chunk, threads); }                                                    \
  extern "C" void *run_new_##name(const Model *m, const Store *s, const Job *j, int64_t teams) { return new Run<T>(*m, *s, *j, teams); } \
  extern "C" int run_go_##name(void *run, int64_t steps, int64_t threads) { auto r = (Run<T> *)run; return r->go(steps, r->count, threads); } \
  extern "C" void run_free_##name(void *run) { delete (Run<T> *)run; }                                                      \
  extern "C" void *live_new_##name(const Model *m, const Store *s, const uint8_t *stops, int64_t slots, int64_t chunk) {    \
    return new Live<T>(*m, *s, stops, slots, chunk); }                                                                      \
  extern "C" void live_join_##name(void *live, int64_t slot, const Writing *text, int64_t held, int64_t source) {           \
    ((Live<T> *)live)->join(slot, *text, held, source); }                                                                   \
  extern "C" void live_leave_##name(void *live, int64_t slot) { ((Live<T> *)live)->slots[slot].busy = false; }              \
  extern "C" int64_t live_fed_##name(void *live, int64_t slot) { return ((Live<T> *)live)->slots[slot].fed; }               \
  extern "C" void live_go_##name(void *live, int64_t steps, double seconds, int64_t teams, int64_t threads) {               \
    ((Live<T> *)live)->go(steps, seconds, teams, threads); }                                                                \
  extern "C" void live_free_##name(void *live) { delete (Live<T> *)live; }
BOTH(F32, float32)
BOTH(Bf16, bfloat16)
