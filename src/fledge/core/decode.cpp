// Decoding of the Transformer (model.py) on a CPU, the whole loop: embedding, blocks, head, drawing, stop tokens, free slots
// refilled from the queue of prompts. generate/native_decoder.py calls it; generate/torch_decoder.py is the slow twin.
//
// A step is a list of rows (slot, position, token): one per answer being written and any number of a prompt being read, so
// prompts are read along with the answers. Every row is computed alone in a fixed order (decode_math.h): neither batch nor
// threads change a byte of it. Many slots: each team of one thread decodes its own slots and never waits. Few slots: a
// team of several threads shares each product by columns, with a barrier after it.
#include <memory>
#include <omp.h>
#include "decode_draw.h"
#include "decode_model.h"

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

struct Slot {
  int64_t answer = -1, prompt = -1, fed = 0, made = 0;  // fed: positions of its prompt and answer that the cache holds
  int64_t source = -1;                                  // slot that is reading the same prompt: copy it when it is read
};

template <class T> struct Team {
  std::vector<Slot> slots; int64_t first; std::vector<Row> rows; std::vector<int64_t> drawing;
  Barrier barrier; Work<T> work;
  Team(const Model &m, int64_t first, int64_t count, int64_t chunk) : slots(count), first(first), work(m, chunk) {}
};

template <class T> struct Run {
  Model model; Job job; Cache<T> cache; int64_t positions; Chooser how;
  std::atomic<int64_t> next{0};
  std::vector<std::unique_ptr<Team<T>>> teams;

  Run(const Model &m, const Store &store, const Job &j, int64_t count) : model(m), job(j), cache(m, store), positions(store.positions) {
    how = {(float)j.temperature, j.top_k, (float)j.top_p};
    for (int64_t t = 0; t < count; t++) {
      int64_t begin = j.slots * t / count, size = j.slots * (t + 1) / count - begin;
      teams.emplace_back(new Team<T>(m, begin, size, std::max(j.chunk, size)));
    }
  }

  int64_t length(int64_t prompt) const { return job.starts[prompt + 1] - job.starts[prompt]; }

  // Give free slots the next answers; a prompt that another slot holds is copied but for its last token.
  void refill(Team<T> &team) {
    for (auto &slot : team.slots)
      if (slot.answer >= 0 && slot.source >= 0 && team.slots[slot.source].fed >= length(slot.prompt) - 1) take(team, slot);
    int64_t idle = 0;
    for (auto &slot : team.slots) idle += slot.answer < 0;
    if (idle == 0 || next.load(std::memory_order_relaxed) >= job.answers) return;
    int64_t answer = next.fetch_add(idle), end = std::min(answer + idle, job.answers);
    for (auto &slot : team.slots) {
      if (slot.answer >= 0 || answer >= end) continue;
      int64_t prompt = answer / job.samples;
      bool kept = slot.prompt == prompt;
      slot.answer = answer++; slot.made = 0;
      slot.fed = kept ? std::min(slot.fed, length(prompt) - 1) : 0;
      slot.prompt = prompt;
      if (kept) continue;
      for (size_t s = 0; s < team.slots.size() && slot.source < 0; s++)
        if (&team.slots[s] != &slot && team.slots[s].prompt == prompt && team.slots[s].source < 0) slot.source = s;
      if (slot.source >= 0 && team.slots[slot.source].fed >= length(prompt) - 1) take(team, slot);
    }
  }

  void take(Team<T> &team, Slot &slot) {
    slot.fed = length(slot.prompt) - 1;
    cache.copy(team.first + slot.source, team.first + (&slot - team.slots.data()), slot.fed);
    slot.source = -1;
  }

  // The rows of the next step: answers first, then as much of the prompts as the step has room for.
  void plan(Team<T> &team) {
    refill(team);
    team.rows.clear(); team.drawing.clear();
    int64_t limit = std::max(job.chunk, (int64_t)team.slots.size());
    for (int reading = 0; reading < 2; reading++)
      for (size_t s = 0; s < team.slots.size(); s++) {
        Slot &slot = team.slots[s];
        if (slot.answer < 0 || slot.source >= 0) continue;
        int64_t prompt = length(slot.prompt), pending = prompt + slot.made - slot.fed;
        if ((slot.made == 0) != reading) continue;
        for (; pending > 0 && (int64_t)team.rows.size() < limit; pending--, slot.fed++) {
          int64_t at = slot.fed;
          int64_t token = at < prompt ? job.prompts[job.starts[slot.prompt] + at] : job.tokens[slot.answer * job.longest + at - prompt];
          team.rows.push_back({team.first + (int64_t)s, at, token, pending == 1});
          if (pending == 1) team.drawing.push_back(s);
        }
      }
  }

  void append(Team<T> &team, int64_t index) {
    Slot &slot = team.slots[team.drawing[index]];
    int64_t answer = slot.answer, place = answer * job.longest + slot.made;
    int64_t token = draw(team.work.logits.data() + index * team.work.vocab_wide, model.vocab, team.work.vocab_wide, how,
                         job.uniforms ? job.uniforms[place] : 0.0f, job.logp + place);
    job.tokens[place] = token;
    job.lengths[answer] = ++slot.made;
    job.stopped[answer] = job.stops[token];
    if (job.stops[token] || slot.made >= job.limits[answer]) slot.answer = -1;
  }

  // At most `steps` steps of one team; true if answers are left.
  bool advance(Team<T> &team, Member me, int64_t steps) {
    Own<T> own(model, std::max(job.chunk, (int64_t)team.slots.size()), positions);
    for (int64_t n = 0; n < steps; n++) {
      if (me.rank == 0) plan(team);
      me.barrier->wait();
      if (team.rows.empty()) return false;
      forward<T>(model, cache, team.rows.data(), team.rows.size(), team.work, own, me);
      for (int64_t i = me.rank; i < (int64_t)team.drawing.size(); i += me.size) append(team, i);
      me.barrier->wait();
    }
    return true;
  }

  bool go(int64_t steps, int64_t threads) {
    std::atomic<bool> left{false};
    int64_t count = teams.size();
    #pragma omp parallel num_threads(threads)
    {
      int64_t n = omp_get_num_threads(), t = omp_get_thread_num(), size = std::max<int64_t>(1, n / count);
      #pragma omp for schedule(static)
      for (int64_t i = 0; i < count; i++) teams[i]->barrier.size = size;
      for (int64_t i = t / size; i < count; i += std::max<int64_t>(1, n / size))  // fewer threads than teams: one after another
        if (advance(*teams[i], Member{(int)(t % size), (int)size, &teams[i]->barrier}, steps)) left = true;
    }
    return left;
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
  extern "C" void *run_new_##name(const Model *m, const Store *s, const Job *j, int64_t teams) { return new Run<T>(*m, *s, *j, teams); } \
  extern "C" int run_go_##name(void *run, int64_t steps, int64_t threads) { return ((Run<T> *)run)->go(steps, threads); }    \
  extern "C" void run_free_##name(void *run) { delete (Run<T> *)run; }
BOTH(F32, float32)
BOTH(Bf16, bfloat16)
