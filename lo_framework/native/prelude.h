/* Vectors as wide as this processor's, blocks of 64 columns, and what the generated code calls.
   Comparisons give masks of all or no bits; a masked value is chosen bit by bit, so that NaN never
   spreads. */
#include <math.h>
#if defined(__AVX__)
#include <immintrin.h>
#endif
#include <stdint.h>
#include <string.h>

/* So many vectors of each of four rows are summed at once (TILE), all in registers, of which
   AVX-512 and ARM have 32 and others 16. Wider vectors than the processor's would lie in memory:
   on AVX2 that made most kernels slower than plain code. */
#if defined(__AVX512F__)
#define LANES 16
#define TILE 4
#elif defined(__AVX__)
#define LANES 8
#define TILE 2
#else
#define LANES 4
#ifdef __aarch64__
#define TILE 4
#else
#define TILE 2
#endif
#endif
#define BLOCK 64
#define VECTORS (BLOCK / LANES)
typedef float V __attribute__((vector_size(4 * LANES)));
typedef int32_t I __attribute__((vector_size(4 * LANES)));
typedef float U __attribute__((vector_size(4 * LANES), aligned(4)));
#define UNROLL _Pragma("GCC unroll 4")
#define INLINE static inline __attribute__((always_inline))

INLINE V splat(float x) { return x - (V){0}; } /* -0 stays -0 */
INLINE V at(const float *p) { return *(const U *)p; }
INLINE void put(float *p, V x) { *(U *)p = x; }
INLINE I ordered(V x) { return x == x; }
INLINE V pick(I mask, V a, V b) {
#if defined(__AVX__) && !defined(__AVX512F__)
  return (V)_mm256_blendv_ps((__m256)b, (__m256)a, (__m256)mask);
#else
  return (V)((mask & (I)a) | (~mask & (I)b));
#endif
}

#if defined(__AVX512F__)
INLINE V v_sqrt(V x) { return (V)_mm512_sqrt_ps((__m512)x); }
/* Of two numbers one of which is NaN, these give the second operand. */
INLINE V v_max(V a, V b) { return (V)_mm512_max_ps((__m512)b, (__m512)a); }
INLINE V v_min(V a, V b) { return (V)_mm512_min_ps((__m512)b, (__m512)a); }
#elif defined(__AVX__)
INLINE V v_sqrt(V x) { return (V)_mm256_sqrt_ps((__m256)x); }
INLINE V v_max(V a, V b) { return (V)_mm256_max_ps((__m256)b, (__m256)a); }
INLINE V v_min(V a, V b) { return (V)_mm256_min_ps((__m256)b, (__m256)a); }
#else
INLINE V v_sqrt(V x) {
  UNROLL for (int i = 0; i < LANES; i++) x[i] = sqrtf(x[i]);
  return x;
}
INLINE V v_max(V a, V b) { return pick((a >= b) | ~ordered(a), a, b); } /* NaN stays */
INLINE V v_min(V a, V b) { return pick((a <= b) | ~ordered(a), a, b); }
#endif
INLINE V v_abs(V x) { return (V)((I)x & 0x7fffffff); }
INLINE V v_round(V x) { /* to the nearest integer, |x| < 2^22 */
  const float magic = 12582912.0f;
  return (x + magic) - magic;
}

/* exp: 2^k exp(r), |r| <= ln 2 / 2, by its series to r^7: within 1e-7. Beyond the ends of float32 it
   is infinite or 0, and of NaN it is NaN, by the arithmetic itself. */
INLINE V v_exp(V x) {
  V y = v_max(v_min(x, splat(88.8f)), splat(-104.0f));
  V k = v_round(y * 1.44269504f);
  V r = y - k * 0.693359375f;
  r = r + k * 2.12194440e-4f;
  V p = r * (1.0f / 5040) + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r * r + r + 1.0f;
  I n = __builtin_convertvector(k, I);
  I half = n >> 1; /* in two steps, for results that are denormal or overflow */
  return p * (V)((half + 127) << 23) * (V)((n - half + 127) << 23);
}

/* log of m 2^k with m in [sqrt(1/2), sqrt 2), by a polynomial in m - 1: within 2e-7. */
INLINE V v_log(V x) {
  I tiny = x < 1.17549435e-38f;
  V y = pick(tiny, x * 8388608.0f, x);
  I bits = (I)y;
  I k = ((bits - 0x3f3504f3) >> 23);
  V t = (V)(bits - (k << 23)) - 1.0f;
  V e = __builtin_convertvector(k, V) - pick(tiny, splat(23.0f), splat(0.0f));
  V z = t * t;
  V p = t * 7.0376836292e-2f - 1.1514610310e-1f;
  p = p * t + 1.1676998740e-1f;
  p = p * t - 1.2420140846e-1f;
  p = p * t + 1.4249322787e-1f;
  p = p * t - 1.6668057665e-1f;
  p = p * t + 2.0000714765e-1f;
  p = p * t - 2.4999993993e-1f;
  p = p * t + 3.3333331174e-1f;
  V r = p * t * z + e * -2.12194440e-4f - 0.5f * z;
  r = e * 0.693359375f + (t + r);
  r = pick(x == 0.0f, splat(-INFINITY), r);
  r = pick(x < 0.0f, splat(NAN), r);
  return pick((x == INFINITY) | ~ordered(x), x, r);
}
INLINE V v_sigmoid(V x) { return 1.0f / (1.0f + v_exp(-x)); }
INLINE V v_tanh(V x) {
  V e = v_exp(v_abs(x) * -2.0f);
  V far = (1.0f - e) / (1.0f + e), z = x * x;
  V near = x * (1.0f + z * (-0.333333333f + z * (0.133333333f + z * -0.053968254f)));
  V t = pick(v_abs(x) < 0.1f, near, (V)((I)far | ((I)x & (int32_t)0x80000000)));
  return pick(ordered(x), t, x);
}

/* y[a][] = sum over b of w[a][b] x[b][], for a block; the last rows one by one. */
static void __attribute__((noinline)) product(int A, int B, const float *w, const float *const *x,
                                              float *const *y) {
  int a = 0;
  for (; a + 4 <= A; a += 4, w += 4 * B)
    for (int from = 0; from < BLOCK; from += TILE * LANES) {
      V s[4][TILE];
      UNROLL for (int i = 0; i < 4; i++) UNROLL for (int v = 0; v < TILE; v++) s[i][v] = splat(0);
      for (int b = 0; b < B; b++) {
        V c[TILE];
        UNROLL for (int v = 0; v < TILE; v++) c[v] = at(x[b] + from + v * LANES);
        UNROLL for (int i = 0; i < 4; i++) {
          const V f = splat(w[i * B + b]);
          UNROLL for (int v = 0; v < TILE; v++) s[i][v] += f * c[v];
        }
      }
      UNROLL for (int i = 0; i < 4; i++) UNROLL for (int v = 0; v < TILE; v++)
        put(y[a + i] + from + v * LANES, s[i][v]);
    }
  for (; a < A; a++, w += B)
    for (int from = 0; from < BLOCK; from += TILE * LANES) {
      V s[TILE];
      UNROLL for (int v = 0; v < TILE; v++) s[v] = splat(0);
      for (int b = 0; b < B; b++) {
        const V f = splat(w[b]);
        UNROLL for (int v = 0; v < TILE; v++) s[v] += f * at(x[b] + from + v * LANES);
      }
      UNROLL for (int v = 0; v < TILE; v++) put(y[a] + from + v * LANES, s[v]);
    }
}

/* total[a][b] += x[a][] y[b][] over a block, lane by lane. */
static void __attribute__((noinline)) outer(int A, int B, const float *const *x,
                                            const float *const *y, V *total) {
  int a = 0;
  for (; a + 4 <= A; a += 4) {
    int b = 0;
    for (; b + TILE <= B; b += TILE) {
      V s[4][TILE];
      UNROLL for (int i = 0; i < 4; i++) UNROLL for (int j = 0; j < TILE; j++)
        s[i][j] = total[(a + i) * B + b + j];
      for (int v = 0; v < BLOCK; v += LANES) {
        V c[TILE];
        UNROLL for (int j = 0; j < TILE; j++) c[j] = at(y[b + j] + v);
        UNROLL for (int i = 0; i < 4; i++) {
          const V d = at(x[a + i] + v);
          UNROLL for (int j = 0; j < TILE; j++) s[i][j] += d * c[j];
        }
      }
      UNROLL for (int i = 0; i < 4; i++) UNROLL for (int j = 0; j < TILE; j++)
        total[(a + i) * B + b + j] = s[i][j];
    }
    for (; b < B; b++)
      UNROLL for (int i = 0; i < 4; i++) {
        V s = total[(a + i) * B + b];
        for (int v = 0; v < BLOCK; v += LANES) s += at(x[a + i] + v) * at(y[b] + v);
        total[(a + i) * B + b] = s;
      }
  }
  for (; a < A; a++)
    for (int b = 0; b < B; b++) {
      V s = total[a * B + b];
      for (int v = 0; v < BLOCK; v += LANES) s += at(x[a] + v) * at(y[b] + v);
      total[a * B + b] = s;
    }
}
static float sum(V x);
/* Rows with zeros beyond the last live column. */
static void __attribute__((noinline)) clear(int B, const I *live, float *const *rows) {
  for (int b = 0; b < B; b++)
    for (int v = 0; v < VECTORS; v++) {
      float *p = rows[b] + v * LANES;
      put(p, (V)(live[v] & (I)at(p)));
    }
}
/* The sum of a row's live columns, in all columns. */
static void __attribute__((noinline)) spread(const float *row, const I *live, float *out) {
  V s = splat(0);
  for (int v = 0; v < VECTORS; v++) s += (V)(live[v] & (I)at(row + v * LANES));
  const V all = splat(sum(s));
  for (int v = 0; v < VECTORS; v++) put(out + v * LANES, all);
}
static float __attribute__((noinline)) sum(V x) {
  float t[LANES], s = 0.0f;
  put(t, x);
  for (int i = 0; i < LANES; i++) s += t[i];
  return s;
}
