// How likely a model finds given tokens after given texts; generate/native_scoring.py calls it.
//
// Texts are lists of rows as in a step of decoding. A text that begins like the one before it in its slot goes on from the
// position where they part: later rows overwrite what they do not share, and no row looks past its own position.
#pragma once
#include "decode_model.h"

struct Question { int64_t row, token; };  // how likely is the token after this row? Sorted by row

struct Questions {
  const Question *list; int64_t count;
  float *logp; uint8_t *likeliest;  // [count] nats; 1 = greedy decoding would write it
};

// All questions about one row, whose logits [size] are filled up with -inf after the vocabulary.
static void answer(const Questions &q, int64_t row, const float *logits, int64_t size) {
  Floats tops = all(-INFINITY), sums = {};
  for (int64_t i = 0; i < size; i += LANES) { Floats x = *(const Floats *)(logits + i); tops = x > tops ? x : tops; }
  float top = tops[0];
  for (int j = 1; j < LANES; j++) top = tops[j] > top ? tops[j] : top;
  for (int64_t i = 0; i < size; i += LANES) sums += exp_of(*(const Floats *)(logits + i) - top);
  float rest = logf(total(sums));
  auto found = std::lower_bound(q.list, q.list + q.count, row, [](const Question &a, int64_t r) { return a.row < r; });
  for (int64_t i = found - q.list; i < q.count && q.list[i].row == row; i++) {
    int64_t token = q.list[i].token;
    q.logp[i] = logits[token] - top - rest;
    q.likeliest[i] = logits[token] == top && std::find(logits, logits + token, top) == logits + token;  // the first of equals
  }
}

// Rows first..last, in chunks, by the members of one team.
template <class T>
static void score_piece(const Model &m, const Cache<T> &cache, const Row *rows, int64_t first, int64_t last, int64_t chunk,
                        const Questions &q, Work<T> &work, Own<T> &own, const Member &me) {
  for (int64_t r = first; r < last; r += chunk) {
    int64_t end = std::min(r + chunk, last), wanted = 0;
    forward<T>(m, cache, rows + r, end - r, work, own, me);
    for (int64_t i = r; i < end; i++)
      if (rows[i].wanted && wanted++ % me.size == me.rank) answer(q, i, work.logits.data() + (wanted - 1) * work.vocab_wide, work.vocab_wide);
    me.barrier->wait();
  }
}

// Pieces of rows, piece p from starts[p] to starts[p + 1], each in slots of its own: a thread each, or one piece by all.
template <class T>
static void score_pieces(const Model &m, const Store &store, const Row *rows, const int64_t *starts, int64_t pieces,
                         const Questions &q, int64_t chunk, int64_t threads) {
  Cache<T> cache(m, store);
  Work<T> shared(m, pieces == 1 ? chunk : 0);
  Barrier barrier;
  #pragma omp parallel num_threads(threads)
  {
    Own<T> own(m, chunk, store.positions);
    if (pieces == 1) {
      #pragma omp single
      barrier.size = omp_get_num_threads();
      score_piece<T>(m, cache, rows, starts[0], starts[1], chunk, q, shared, own, Member{omp_get_thread_num(), barrier.size, &barrier});
    } else {
      Barrier alone; Work<T> work(m, chunk);
      #pragma omp for schedule(dynamic, 1)
      for (int64_t p = 0; p < pieces; p++) score_piece<T>(m, cache, rows, starts[p], starts[p + 1], chunk, q, work, own, Member{0, 1, &alone});
    }
  }
}
