// Answers in slots: which rows a step has, drawing, teams of threads, the clock. Run (decode.cpp) answers a list of prompts
// with it, Live (decode_live.h) whoever comes.
//
// A step is a list of rows (slot, position, token): one per answer being written and any number of a prompt being read, so
// prompts are read along with the answers. Every row is computed alone in a fixed order (decode_math.h): neither batch nor
// threads change a byte of it. Many slots: each team of one thread decodes its own slots and never waits. Few slots: a
// team of several threads shares each product by columns, with a barrier after it.
#pragma once
#include <chrono>
#include <memory>
#include <omp.h>
#include "decode_draw.h"
#include "decode_model.h"

struct Writing {  // one answer, in buffers of the caller
  const int64_t *prompt; int64_t read, limit;  // its tokens and how many they are; most tokens of the answer
  const float *uniforms;                       // [limit]; null if greedy
  double temperature, top_p; int64_t top_k;
  int64_t *tokens; float *logp;                // [limit] x 2
  int64_t *length; uint8_t *stopped;           // tokens so far; 1 = ended itself
};

struct Slot {
  Writing text{}; Chooser how{};
  int64_t index = 0;          // in the cache
  int64_t fed = 0, made = 0;  // positions of its prompt and answer that the cache holds; tokens of its answer
  bool busy = false;
  int64_t prompt = -1;        // of Run: which prompt the cache holds
  Slot *source = nullptr;     // of Run: is reading the same prompt: copy it when it is read
  void begin(const Writing &w, int64_t held) {
    text = w; how = {(float)w.temperature, w.top_k, (float)w.top_p};
    fed = held; made = 0; busy = true;
  }
};

template <class T> struct Team {
  std::vector<Slot *> slots, drawing; std::vector<Row> rows;
  Barrier barrier; Work<T> work;
  Team(const Model &m, int64_t rows) : work(m, rows) {}
};

constexpr int64_t NEVER = INT64_MAX, SHORTLY = 2000000;  // nanoseconds: an answer has ended, its slot is wanted soon
static inline int64_t now() { return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

template <class T> struct Slots {
  Model model; Cache<T> cache; int64_t positions, chunk;  // chunk: most rows of a step
  const uint8_t *stops;                                   // [vocab] 1 = ends the answer
  std::vector<Slot> slots;
  std::vector<std::unique_ptr<Team<T>>> teams;
  std::atomic<int64_t> deadline{NEVER};                   // no step begins after it

  Slots(const Model &m, const Store &store, const uint8_t *stops, int64_t count, int64_t chunk)
      : model(m), cache(m, store), positions(store.positions), chunk(chunk), stops(stops), slots(count) {
    for (int64_t s = 0; s < count; s++) slots[s].index = s;
  }
  virtual ~Slots() {}
  virtual void refill(Team<T> &) {}  // before each step: give the team's free slots new answers

  int64_t room(size_t slots) const { return std::max(chunk, (int64_t)slots); }

  // Share these slots between so many teams.
  void divide(const std::vector<Slot *> &members, int64_t count) {
    while ((int64_t)teams.size() < count) teams.emplace_back(new Team<T>(model, room(slots.size())));
    int64_t n = members.size();
    for (int64_t t = 0; t < count; t++) teams[t]->slots.assign(members.begin() + n * t / count, members.begin() + n * (t + 1) / count);
  }

  // The rows of the next step: answers first, then as much of the prompts as the step has room for.
  void plan(Team<T> &team) {
    team.rows.clear(); team.drawing.clear();
    int64_t most = room(team.slots.size());
    for (int reading = 0; reading < 2; reading++)
      for (Slot *slot : team.slots) {
        if (!slot->busy || slot->source || (slot->made == 0) != reading) continue;
        const Writing &text = slot->text;
        for (int64_t pending = text.read + slot->made - slot->fed; pending > 0 && (int64_t)team.rows.size() < most; pending--, slot->fed++) {
          int64_t at = slot->fed, token = at < text.read ? text.prompt[at] : text.tokens[at - text.read];
          team.rows.push_back({slot->index, at, token, pending == 1});
          if (pending == 1) team.drawing.push_back(slot);
        }
      }
  }

  void append(Team<T> &team, int64_t index) {
    Slot &slot = *team.drawing[index]; const Writing &text = slot.text;
    int64_t at = slot.made++;
    int64_t token = draw(team.work.logits.data() + index * team.work.vocab_wide, model.vocab, team.work.vocab_wide, slot.how,
                         text.uniforms ? text.uniforms[at] : 0.0f, text.logp + at);
    text.tokens[at] = token; *text.length = slot.made; *text.stopped = stops[token];
    slot.busy = !stops[token] && slot.made < text.limit;
    if (at == 0) hurry(0);
    else if (!slot.busy) hurry(SHORTLY);
  }

  void hurry(int64_t nanoseconds) {  // a call with a deadline ends at most so much later
    int64_t known = deadline.load(std::memory_order_relaxed);
    if (known == NEVER) return;
    int64_t wanted = now() + nanoseconds;
    while (wanted < known && !deadline.compare_exchange_weak(known, wanted)) {}
  }

  // At most `steps` steps of one team; true if answers are left.
  bool advance(Team<T> &team, Member me, int64_t steps) {
    Own<T> own(model, room(team.slots.size()), positions);
    bool late = false;
    for (int64_t n = 0; n < steps; n++) {
      if (me.rank == 0) {
        int64_t end = deadline.load(std::memory_order_relaxed);
        late = n > 0 && end != NEVER && now() >= end;
        refill(team);
        if (late) team.rows.clear(); else plan(team);
      }
      me.barrier->wait();
      if (team.rows.empty()) return late;
      forward<T>(model, cache, team.rows.data(), team.rows.size(), team.work, own, me);
      for (int64_t i = me.rank; i < (int64_t)team.drawing.size(); i += me.size) append(team, i);
      me.barrier->wait();
    }
    return true;
  }

  bool go(int64_t steps, int64_t count, int64_t threads) {  // the first `count` teams
    std::atomic<bool> left{false};
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
