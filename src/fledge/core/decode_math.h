// Vectors, packed weights, matrix products and attention of one decode step; decode.cpp includes it.
// A T is a storage format: Bf16 holds two neighbouring depths k, k+1 in one 32-bit unit (what dpbf16 instructions read),
// F32 one. Packed everywhere: [panel][k / PER][columns], so that one load serves LANES columns and no sum runs across lanes.
// Every output is one chain over k in a fixed order, so a row's result does not depend on how many rows share the product.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

constexpr int LANES = 16, PANEL = 32;
typedef float Floats __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint32_t Words __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(64), aligned(4), may_alias));
#ifdef __AVX512F__
constexpr int BLOCK = 12;  // rows of a tile: 12 x 2 sums fill the 32 registers
#else
constexpr int BLOCK = 3;
#endif

static inline int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
static inline Floats all(float x) { return x - (Floats){}; }
static inline float as_float(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }
static inline float total(Floats x) {
  float s[LANES]; memcpy(s, &x, sizeof s);
  for (int width = LANES / 2; width; width /= 2) for (int i = 0; i < width; i++) s[i] += s[i + width];
  return s[0];
}
static inline uint16_t round_bf16(float x) {  // to nearest even
  uint32_t u; memcpy(&u, &x, 4);
  return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
// exp by range reduction and a degree-6 polynomial, 2 ulp (Cephes expf's coefficients); below -87 it is 0
static inline Floats exp_of(Floats x) {
  Ints kept = x >= -87.0f;
  x = x < -87.0f ? all(-87.0f) : x > 88.0f ? all(88.0f) : x;
  Floats n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;  // 1.5 * 2^23: rounds to the nearest integer
  Floats r = x - n * 0.693359375f + n * 2.12194440e-4f, p = all(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f; p = p * r + 8.3334519073e-3f; p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f; p = p * r + 5.0000001201e-1f; p = p * r * r + r + 1.0f;
  Ints e = (__builtin_convertvector(n, Ints) + 127) << 23;
  return (Floats)((Ints)(p * (Floats)e) & kept);
}

struct F32 {
  typedef float Unit;
  typedef Floats Weight;
  static constexpr int PER = 1;
  static Weight load(const Unit *w) { return *(const Floats *)w; }
  static Floats dot(Floats sum, Weight w, Unit x) { return sum + w * x; }
  static float rounded(float x) { return x; }
  static void store(const float *from, Unit *to, int64_t n) { memcpy(to, from, n * 4); }
  static void set(Unit *unit, int, float x) { *unit = x; }
};

struct Bf16 {
  typedef uint32_t Unit;
  static constexpr int PER = 2;
#ifdef __AVX512BF16__
  typedef __m512i Weight;
  static Weight load(const Unit *w) { return _mm512_loadu_si512(w); }
  static Floats dot(Floats sum, Weight w, Unit x) {
    return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)w, (__m512bh)_mm512_set1_epi32((int)x));
  }
#else
  struct Weight { Floats even, odd; };
  static Weight load(const Unit *w) {
    Words u = *(const Words *)w;
    return {(Floats)(u << 16), (Floats)(u & 0xffff0000u)};
  }
  static Floats dot(Floats sum, Weight w, Unit x) {
    return sum + w.even * as_float(x << 16) + w.odd * as_float(x & 0xffff0000u);
  }
#endif
  static float rounded(float x) { return as_float((uint32_t)round_bf16(x) << 16); }
  static void store(const float *from, Unit *to, int64_t n) {
    uint16_t *half = (uint16_t *)to; int64_t i = 0;
#ifdef __AVX512BF16__
    for (; i + LANES <= n; i += LANES) _mm256_storeu_si256((__m256i *)(half + i), (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(from + i)));
#endif
    for (; i < n; i++) half[i] = round_bf16(from[i]);
    if (n & 1) half[n] = 0;
  }
  // the value of position `odd` (0 or 1) of a pair; the first one clears the second, so no stale number is ever multiplied
  static void set(Unit *unit, int odd, float x) { uint32_t u = round_bf16(x); *unit = odd ? (*unit & 0xffffu) | u << 16 : u; }
};

// ------------------------------------------------------------------------------------------------- packed weights

// w [N,K] -> panels of 32 columns [ceil(N/32)][ceil(K/PER)][32], missing columns 0. gated: w holds gate rows then up rows,
// and a panel is 16 gate columns with the 16 up columns they are multiplied with.
template <class T> static void pack(const float *w, typename T::Unit *out, int64_t N, int64_t K, int gated) {
  int64_t depth = up(K, T::PER) / T::PER, half = N / 2, panels = gated ? up(half, LANES) / LANES : up(N, PANEL) / PANEL;
  #pragma omp parallel for schedule(static)
  for (int64_t p = 0; p < panels; p++) {
    typename T::Unit *to = out + p * depth * PANEL;
    for (int c = 0; c < PANEL; c++) {
      int64_t n = p * PANEL + c, at = p * LANES + c % LANES;
      if (gated) n = at >= half ? N : c < LANES ? at : half + at;
      typename T::Unit piece[64]; const float *row = w + n * K;
      for (int64_t k = 0; k < K; k += 64) {
        int64_t size = K - k < 64 ? K - k : 64, units = up(size, T::PER) / T::PER;
        if (n < N) T::store(row + k, piece, size); else memset(piece, 0, sizeof piece);
        for (int64_t u = 0; u < units; u++) to[(k / T::PER + u) * PANEL + c] = piece[u];
      }
    }
  }
}

// ----------------------------------------------------------------------------------------------------- products

// sums [M][P * 32] of M rows of x (ldx units apart) with P neighbouring panels
template <class T, int M, int P>
static void tile(const typename T::Unit *w, int64_t panel, const typename T::Unit *x, int64_t ldx, int64_t depth, float *out) {
  constexpr int C = 2 * P;
  Floats sum[M][C];
  #pragma GCC unroll 16
  for (int m = 0; m < M; m++)
    #pragma GCC unroll 16
    for (int c = 0; c < C; c++) sum[m][c] = (Floats){};
  const typename T::Unit *base[(M + 2) / 3];  // three rows share a pointer: 12 of them would not fit the registers
  for (int i = 0; i < (M + 2) / 3; i++) base[i] = x + 3 * i * ldx;
  for (int64_t k = 0; k < depth; k++, w += PANEL) {
    typename T::Weight v[C];
    #pragma GCC unroll 16
    for (int c = 0; c < C; c++) v[c] = T::load(w + (c / 2) * panel + (c % 2) * LANES);
    #pragma GCC unroll 16
    for (int m = 0; m < M; m++) {
      typename T::Unit value = base[m / 3][(m % 3) * ldx];
      #pragma GCC unroll 16
      for (int c = 0; c < C; c++) sum[m][c] = T::dot(sum[m][c], v[c], value);
    }
    #pragma GCC unroll 16
    for (int i = 0; i < (M + 2) / 3; i++) base[i]++;
  }
  #pragma GCC unroll 16
  for (int m = 0; m < M; m++)
    #pragma GCC unroll 16
    for (int c = 0; c < C; c++) *(Floats *)(out + m * P * PANEL + c * LANES) = sum[m][c];
}

// panels side by side: few rows need more sums in flight than the latency of one addition. More than one only where all
// rows fit one block (rows of several blocks are at least 7 each)
static constexpr int beside(int rows) { return BLOCK < 12 ? 1 : rows <= 3 ? 4 : rows <= 6 ? 2 : 1; }

template <class T, int M>
static void choose_tile(int rows, int wide, const typename T::Unit *w, int64_t panel, const typename T::Unit *x, int64_t ldx,
                        int64_t depth, float *out) {
  if (rows == M) {
    if (wide > 1) tile<T, M, beside(M)>(w, panel, x, ldx, depth, out);
    else tile<T, M, 1>(w, panel, x, ldx, depth, out);
  } else if constexpr (M > 1) choose_tile<T, M - 1>(rows, wide, w, panel, x, ldx, depth, out);
}

// x [rows][ldx units] times panels first..last: sink(row, panel, 32 sums) for every row and panel
template <class T, class Sink>
static void multiply(const typename T::Unit *w, int64_t first, int64_t last, int64_t depth, const typename T::Unit *x,
                     int64_t ldx, int rows, Sink sink) {
  if (rows == 0) return;
  int blocks = (rows + BLOCK - 1) / BLOCK, block = (rows + blocks - 1) / blocks, many = beside(block);
  int64_t panel = depth * PANEL;
  for (int64_t p = first; p < last;) {
    int wide = last - p >= many ? many : 1;
    for (int r = 0; r < rows; r += block) {
      int size = rows - r < block ? rows - r : block;
      float out[12 * PANEL];  // rows x panels of every kind of tile are at most 12
      choose_tile<T, BLOCK>(size, wide, w + p * panel, panel, x + (int64_t)r * ldx, ldx, depth, out);
      for (int m = 0; m < size; m++) for (int c = 0; c < wide; c++) sink(r + m, p + c, out + (m * wide + c) * PANEL);
    }
    p += wide;
  }
}

// ---------------------------------------------------------------------------------------------------- attention

// scores of G queries q [G][units] with P panels of 16 keys [P][units][16] -> out [G][stride]
template <class T, int G, int P>
static void score(const typename T::Unit *keys, const typename T::Unit *q, int64_t units, float *out, int64_t stride) {
  Floats even[G][P] = {}, odd[G][P] = {};
  int64_t panel = units * LANES, e = 0;
  for (; e + 2 <= units; e += 2)
    #pragma GCC unroll 8
    for (int p = 0; p < P; p++) {
      auto a = T::load(keys + p * panel + e * LANES), b = T::load(keys + p * panel + (e + 1) * LANES);
      __builtin_prefetch(keys + (p + P) * panel + e * LANES);  // groups of panels are too short for the hardware to foresee
      __builtin_prefetch(keys + (p + P) * panel + (e + 1) * LANES);
      #pragma GCC unroll 8
      for (int g = 0; g < G; g++) {
        even[g][p] = T::dot(even[g][p], a, q[g * units + e]);
        odd[g][p] = T::dot(odd[g][p], b, q[g * units + e + 1]);
      }
    }
  if (e < units)
    for (int p = 0; p < P; p++) for (int g = 0; g < G; g++) even[g][p] = T::dot(even[g][p], T::load(keys + p * panel + e * LANES), q[g * units + e]);
  for (int g = 0; g < G; g++) for (int p = 0; p < P; p++) *(Floats *)(out + g * stride + p * LANES) = even[g][p] + odd[g][p];
}

// G rows of chances [G][stride] over `units` pairs of positions, times values [units][width] -> C x 16 columns of out
template <class T, int G, int C>
static void mix(const typename T::Unit *values, int64_t width, const typename T::Unit *chances, int64_t stride, int64_t units,
                float *out, int64_t out_stride) {
  Floats even[G][C] = {}, odd[G][C] = {};
  int64_t t = 0;
  for (; t + 2 <= units; t += 2)
    #pragma GCC unroll 8
    for (int c = 0; c < C; c++) {
      auto a = T::load(values + t * width + c * LANES), b = T::load(values + (t + 1) * width + c * LANES);
      #pragma GCC unroll 8
      for (int g = 0; g < G; g++) {
        even[g][c] = T::dot(even[g][c], a, chances[g * stride + t]);
        odd[g][c] = T::dot(odd[g][c], b, chances[g * stride + t + 1]);
      }
    }
  if (t < units)
    for (int c = 0; c < C; c++) for (int g = 0; g < G; g++) even[g][c] = T::dot(even[g][c], T::load(values + t * width + c * LANES), chances[g * stride + t]);
  for (int g = 0; g < G; g++) for (int c = 0; c < C; c++) *(Floats *)(out + g * out_stride + c * LANES) = even[g][c] + odd[g][c];
}

// scores [length] -> their exponentials as units (the last one filled up with 0); returns 1 / sum
template <class T> static float soften(float *scores, int64_t length, typename T::Unit *chances) {
  int64_t full = up(length, LANES);
  for (int64_t t = length; t < full; t++) scores[t] = -INFINITY;
  Floats top = all(-INFINITY), sum = {};
  for (int64_t t = 0; t < full; t += LANES) { Floats s = *(Floats *)(scores + t); top = s > top ? s : top; }
  float most = top[0];
  for (int i = 1; i < LANES; i++) most = top[i] > most ? top[i] : most;
  for (int64_t t = 0; t < full; t += LANES) {
    Floats e = exp_of(*(Floats *)(scores + t) - most);
    *(Floats *)(scores + t) = e; sum += e;
  }
  T::store(scores, chances, full);
  return 1.0f / total(sum);
}

// G query heads of one key/value head at one position: q [G][units of E] -> out [G][width], width = E rounded up to 16.
// keys [positions / 16][units][16], values [positions / PER][width]; scores and chances: room for G x `room` numbers
template <class T, int G>
static void attend(const typename T::Unit *q, const typename T::Unit *keys, const typename T::Unit *values, int64_t length,
                   int64_t units, int64_t width, float *scores, typename T::Unit *chances, int64_t room, float *out) {
  int64_t panels = up(length, LANES) / LANES, p = 0, pairs = up(length, T::PER) / T::PER;
  constexpr int P = G == 1 ? 4 : G == 2 ? 4 : 2;
  for (; p + P <= panels; p += P) score<T, G, P>(keys + p * units * LANES, q, units, scores + p * LANES, room);
  for (; p < panels; p++) score<T, G, 1>(keys + p * units * LANES, q, units, scores + p * LANES, room);
  float scale[G];
  for (int g = 0; g < G; g++) scale[g] = soften<T>(scores + g * room, length, chances + g * room);
  int64_t c = 0; constexpr int C = G <= 2 ? 4 : 2;
  for (; c + C * LANES <= width; c += C * LANES) mix<T, G, C>(values + c, width, chances, room, pairs, out + c, width);
  for (; c < width; c += LANES) mix<T, G, 1>(values + c, width, chances, room, pairs, out + c, width);
  for (int g = 0; g < G; g++) for (int64_t i = 0; i < width; i++) out[g * width + i] *= scale[g];
}
