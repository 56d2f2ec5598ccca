// Fused steps of a training pass on a CPU; kernels.py calls them, native.py compiles them, and each has a torch twin.
// T is float or bfloat16 (kept as uint16_t); arithmetic is float32. Rows are split among OpenMP threads by a static
// schedule, so the same thread count gives the same bytes.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#include <omp.h>

typedef uint16_t bf16;
static inline float get(float x) { return x; }
static inline float get(bf16 x) { uint32_t u = (uint32_t)x << 16; float f; memcpy(&f, &u, 4); return f; }
static inline void put(float *p, float x) { *p = x; }
static inline void put(bf16 *p, float x) {  // round to nearest even
  uint32_t u; memcpy(&u, &x, 4);
  *p = (bf16)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
// exp by range reduction and a degree-6 polynomial, 2 ulp, vectorises everywhere (Cephes expf's coefficients)
static inline float fast_exp(float x) {
  x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
  float n = __builtin_floorf(x * 1.44269504f + 0.5f), r = x - n * 0.693359375f + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f; p = p * r + 8.3334519073e-3f; p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f; p = p * r + 5.0000001201e-1f; p = p * r * r + r + 1.0f;
  int32_t e = ((int32_t)n + 127) << 23; float s; memcpy(&s, &e, 4);
  return p * s;
}

// qkv [B,T,(H+2K)E] -> q [B,H,T,E] rotated and scaled, k [B,K,T,E] rotated, v [B,K,T,E]; backward is the inverse
template <class S, bool BACK>
static void rotate(S *qkv, const float *cos, const float *sin, S *q, S *k, S *v, int64_t B, int64_t T, int H, int K, int E,
                   float scale) {
  int half = E / 2, all = H + 2 * K;
  #pragma omp parallel for schedule(static)
  for (int64_t bt = 0; bt < B * T; bt++) {
    int64_t b = bt / T, t = bt % T;
    const float *c = cos + t * half, *s = sin + t * half;
    for (int h = 0; h < all; h++) {
      S *flat = qkv + (bt * all + h) * E;
      S *head = h < H ? q + ((b * H + h) * T + t) * E : h < H + K ? k + ((b * K + h - H) * T + t) * E
                                                                  : v + ((b * K + h - H - K) * T + t) * E;
      if (h >= H + K) { if (BACK) memcpy(flat, head, E * sizeof(S)); else memcpy(head, flat, E * sizeof(S)); continue; }
      float m = h < H ? scale : 1.0f;
      const S *from = BACK ? head : flat; S *to = BACK ? flat : head;
      #pragma omp simd
      for (int i = 0; i < half; i++) {
        float x = get(from[i]) * m, y = get(from[i + half]) * m, sn = BACK ? -s[i] : s[i];
        put(to + i, x * c[i] - y * sn); put(to + i + half, y * c[i] + x * sn);
      }
    }
  }
}

template <class S>
static void rms(const S *x, const float *gain, S *y, float *scale, int64_t N, int D, float eps) {
  #pragma omp parallel for schedule(static)
  for (int64_t n = 0; n < N; n++) {
    const S *a = x + n * D; S *o = y + n * D; float sum = 0;
    #pragma omp simd reduction(+ : sum)
    for (int i = 0; i < D; i++) { float f = get(a[i]); sum += f * f; }
    float r = 1.0f / sqrtf(sum / D + eps); scale[n] = r;
    #pragma omp simd
    for (int i = 0; i < D; i++) put(o + i, get(a[i]) * r * gain[i]);
  }
}

template <class S>
static void rms_back(const S *x, const float *gain, const float *scale, const S *grad, S *dx, float *dgain, int64_t N, int D) {
  int threads = omp_get_max_threads();
  std::vector<float> part((size_t)threads * D, 0.0f);
  #pragma omp parallel num_threads(threads)
  {
    float *mine = part.data() + (size_t)omp_get_thread_num() * D;
    #pragma omp for schedule(static)
    for (int64_t n = 0; n < N; n++) {
      const S *a = x + n * D, *g = grad + n * D; S *o = dx + n * D; float r = scale[n], dot = 0;
      #pragma omp simd reduction(+ : dot)
      for (int i = 0; i < D; i++) dot += get(g[i]) * gain[i] * get(a[i]);
      float c = dot * r * r * r / D;
      #pragma omp simd
      for (int i = 0; i < D; i++) {
        float gi = get(g[i]), ai = get(a[i]);
        mine[i] += gi * ai * r; put(o + i, gi * gain[i] * r - ai * c);
      }
    }
  }
  for (int t = 0; t < threads; t++) for (int i = 0; i < D; i++) dgain[i] += part[(size_t)t * D + i];
}

template <class S> static void swiglu(const S *x, S *y, int64_t N, int F) {
  #pragma omp parallel for schedule(static)
  for (int64_t n = 0; n < N; n++) {
    const S *g = x + n * 2 * F, *u = g + F; S *o = y + n * F;
    #pragma omp simd
    for (int i = 0; i < F; i++) { float a = get(g[i]); put(o + i, a / (1.0f + fast_exp(-a)) * get(u[i])); }
  }
}

template <class S> static void swiglu_back(const S *x, const S *grad, S *dx, int64_t N, int F) {
  #pragma omp parallel for schedule(static)
  for (int64_t n = 0; n < N; n++) {
    const S *g = x + n * 2 * F, *u = g + F, *d = grad + n * F; S *dg = dx + n * 2 * F, *du = dg + F;
    #pragma omp simd
    for (int i = 0; i < F; i++) {
      float a = get(g[i]), s = 1.0f / (1.0f + fast_exp(-a)), e = get(d[i]);
      put(du + i, e * a * s); put(dg + i, e * get(u[i]) * s * (1.0f + a * (1.0f - s)));
    }
  }
}

// scores [B,H,T,T] in place -> softmax over allowed positions: s <= t if causal, and of the same document if doc is given
template <class S> static void softmax(S *scores, const int32_t *doc, int64_t B, int H, int64_t T, int causal) {
  #pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < B * H * T; row++) {
    int64_t t = row % T, b = row / (T * H), end = causal ? t + 1 : T;
    S *p = scores + row * T; const int32_t *d = doc ? doc + b * T : nullptr;
    float buffer[1024], top = -INFINITY, sum = 0;
    if (d) {
      int32_t own = d[t];
      #pragma omp simd reduction(max : top)
      for (int64_t s = 0; s < end; s++) { float f = d[s] == own ? get(p[s]) : -INFINITY; buffer[s] = f; top = f > top ? f : top; }
    } else {
      #pragma omp simd reduction(max : top)
      for (int64_t s = 0; s < end; s++) { float f = get(p[s]); buffer[s] = f; top = f > top ? f : top; }
    }
    #pragma omp simd reduction(+ : sum)
    for (int64_t s = 0; s < end; s++) {
      float f = buffer[s], e = f == -INFINITY ? 0.0f : fast_exp(f - top);
      buffer[s] = e; sum += e;
    }
    float inverse = 1.0f / sum;
    #pragma omp simd
    for (int64_t s = 0; s < end; s++) put(p + s, buffer[s] * inverse);
    if (end < T) memset(p + end, 0, (T - end) * sizeof(S));
  }
}

// grad [B,H,T,T] in place -> gradient of the scores
template <class S> static void softmax_back(const S *probs, S *grad, int64_t rows, int64_t T, int causal) {
  #pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; row++) {
    int64_t end = causal ? row % T + 1 : T; const S *p = probs + row * T; S *g = grad + row * T; float dot = 0;
    #pragma omp simd reduction(+ : dot)
    for (int64_t s = 0; s < end; s++) dot += get(p[s]) * get(g[s]);
    #pragma omp simd
    for (int64_t s = 0; s < end; s++) put(g + s, get(p[s]) * (get(g[s]) - dot));
    if (end < T) memset(g + end, 0, (T - end) * sizeof(S));
  }
}

// logits [N,V] in place -> probabilities; logp[n] = log p(target), entropy[n] if given
template <class S> static void choose(S *logits, const int64_t *target, float *logp, float *entropy, int64_t N, int64_t V) {
  #pragma omp parallel for schedule(static)
  for (int64_t n = 0; n < N; n++) {
    S *p = logits + n * V; float top = -INFINITY, sum = 0, mean = 0;
    #pragma omp simd reduction(max : top)
    for (int64_t i = 0; i < V; i++) { float f = get(p[i]); top = f > top ? f : top; }
    float chosen = get(p[target[n]]);
    if (entropy) for (int64_t i = 0; i < V; i++) { float f = get(p[i]) - top; mean += fast_exp(f) * f; }
    #pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < V; i++) sum += fast_exp(get(p[i]) - top);
    float lse = top + logf(sum), inverse = 1.0f / sum;
    logp[n] = chosen - lse;
    if (entropy) entropy[n] = logf(sum) - mean * inverse;
    #pragma omp simd
    for (int64_t i = 0; i < V; i++) put(p + i, fast_exp(get(p[i]) - top) * inverse);
  }
}

// probabilities [N,V] in place -> grad[n] * (onehot(target) - p) - bend[n] * p (log p + entropy[n]), the last where given
template <class S> static void choose_back(S *probs, const int64_t *target, const float *grad, const float *bend,
                                           const float *entropy, int64_t N, int64_t V) {
  #pragma omp parallel for schedule(static)
  for (int64_t n = 0; n < N; n++) {
    S *p = probs + n * V; float g = grad[n], kept = get(p[target[n]]), e = bend ? bend[n] : 0.0f;
    if (e != 0.0f) {
      float h = entropy[n];
      float at = kept > 0 ? e * kept * (logf(kept) + h) : 0.0f;
      for (int64_t i = 0; i < V; i++) { float q = get(p[i]); put(p + i, -g * q - (q > 0 ? e * q * (logf(q) + h) : 0.0f)); }
      put(p + target[n], g * (1.0f - kept) - at);
      continue;
    }
    #pragma omp simd
    for (int64_t i = 0; i < V; i++) put(p + i, -g * get(p[i]));
    put(p + target[n], g * (1.0f - kept));
  }
}

#define BOTH(S, name)                                                                                                    \
  extern "C" void rotate_##name(S *x, const float *c, const float *s, S *q, S *k, S *v, int64_t B, int64_t T, int H,     \
                                int K, int E, float m) { rotate<S, false>(x, c, s, q, k, v, B, T, H, K, E, m); }         \
  extern "C" void rotate_back_##name(S *x, const float *c, const float *s, S *q, S *k, S *v, int64_t B, int64_t T,       \
                                     int H, int K, int E, float m) { rotate<S, true>(x, c, s, q, k, v, B, T, H, K, E, m); } \
  extern "C" void rms_##name(const S *x, const float *g, S *y, float *r, int64_t N, int D, float e) { rms(x, g, y, r, N, D, e); } \
  extern "C" void rms_back_##name(const S *x, const float *g, const float *r, const S *d, S *dx, float *dg, int64_t N,   \
                                  int D) { rms_back(x, g, r, d, dx, dg, N, D); }                                         \
  extern "C" void swiglu_##name(const S *x, S *y, int64_t N, int F) { swiglu(x, y, N, F); }                              \
  extern "C" void swiglu_back_##name(const S *x, const S *d, S *dx, int64_t N, int F) { swiglu_back(x, d, dx, N, F); }   \
  extern "C" void softmax_##name(S *p, const int32_t *d, int64_t B, int H, int64_t T, int c) { softmax(p, d, B, H, T, c); } \
  extern "C" void softmax_back_##name(const S *p, S *g, int64_t R, int64_t T, int c) { softmax_back(p, g, R, T, c); }    \
  extern "C" void choose_##name(S *l, const int64_t *t, float *o, float *h, int64_t N, int64_t V) { choose(l, t, o, h, N, V); } \
  extern "C" void choose_back_##name(S *p, const int64_t *t, const float *g, const float *b, const float *h, int64_t N, \
                                     int64_t V) { choose_back(p, t, g, b, h, N, V); }
BOTH(float, float32)
BOTH(bf16, bfloat16)
