
/* Convolutions of maps whose last dimension are the rows of a batch, by a table of neighbours:
   table[p * taps + t] is the pixel of the input that tap t of output pixel p reads, or -1.

   A map may be seen through windows of 2x2 pixels, one of which is chosen for each number: then
   windows[q * 4 + j] are the pixels of window q, and choice[q][] is a j. */

typedef int8_t J __attribute__((vector_size(LANES), aligned(1)));
INLINE I chosen(const int8_t *p) { return __builtin_convertvector(*(const J *)p, I); }

/* `larger`: the first is, or it is NaN. */
#ifdef __AVX512F__
typedef __mmask16 M;
INLINE M larger(V a, V b) {
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ) |
         _mm512_cmp_ps_mask((__m512)a, (__m512)a, _CMP_UNORD_Q);
}
INLINE M equal(I a, int j) { return _mm512_cmpeq_epi32_mask((__m512i)a, _mm512_set1_epi32(j)); }
INLINE V choose(M m, V a, V b) { return (V)_mm512_mask_mov_ps((__m512)b, m, (__m512)a); }
INLINE I number(M m, int j, I b) { return (I)_mm512_mask_set1_epi32((__m512i)b, m, j); }
#else
typedef I M;
INLINE M larger(V a, V b) { return (a > b) | ~ordered(a); }
INLINE M equal(I a, int j) { return a == j; }
INLINE V choose(M m, V a, V b) { return pick(m, a, b); }
INLINE I number(M m, int j, I b) { return (m & j) | (~m & b); }
#endif

/* Four rows of weights, their strides over output and input maps. */
typedef struct {
  const float *row[4];
  long rows, cs;
} Weights;

INLINE Weights four(const float *w, long o, long O, long os, long cs) {
  Weights f;
  f.rows = O - o < 4 ? O - o : 4;
  f.cs = cs;
  for (int i = 0; i < 4; i++) f.row[i] = w + (o + (i < f.rows ? i : 0)) * os;
  return f;
}

/* s[i] = sum over c, t of w[i][c][t] in[c][near[t]][], for a tile of the batch. */
INLINE void neighbours(V s[4][TILE], const Weights *w, long C, long taps, const int32_t *near,
                       const float *in, long in_map, long in_pixel) {
  const float *w0 = w->row[0], *w1 = w->row[1], *w2 = w->row[2], *w3 = w->row[3];
  UNROLL for (int i = 0; i < 4; i++) UNROLL for (int v = 0; v < TILE; v++) s[i][v] = splat(0);
  for (long t = 0; t < taps; t++) {
    if (near[t] < 0) continue;
    const float *x = in + near[t] * in_pixel;
    for (long c = 0; c < C; c++, x += in_map) {
      V a[TILE];
      UNROLL for (int v = 0; v < TILE; v++) a[v] = at(x + v * LANES);
      const long k = c * w->cs + t;
      const V f0 = splat(w0[k]), f1 = splat(w1[k]), f2 = splat(w2[k]), f3 = splat(w3[k]);
      UNROLL for (int v = 0; v < TILE; v++) {
        s[0][v] += f0 * a[v];
        s[1][v] += f1 * a[v];
        s[2][v] += f2 * a[v];
        s[3][v] += f3 * a[v];
      }
    }
  }
}

/* How much of a block must be computed for the rows of the batch from `begin` on. */
INLINE long span_of(long rows, long begin, long step) {
  const long left = rows - begin < BLOCK ? rows - begin : BLOCK;
  return (left + step - 1) / step * step;
}

/* out[o][p][] = sum over c, t of w[o][c][t] in[c][table[p][t]][], for `span` rows of the batch, at
   most 64; `os` and `cs` are the strides of w over o and c. */
static void gather_block(long span, long O, long C, long P, long taps, const int32_t *table,
                         const float *w, long os, long cs, const float *in, long in_map,
                         long in_pixel, float *out, long out_map, long out_pixel) {
  for (long o = 0; o < O; o += 4) {
    const Weights f = four(w, o, O, os, cs);
    for (long p = 0; p < P; p++)
      for (long from = 0; from < span; from += TILE * LANES) {
        V s[4][TILE];
        neighbours(s, &f, C, taps, table + p * taps, in + from, in_map, in_pixel);
        for (long i = 0; i < f.rows; i++)
          UNROLL for (int v = 0; v < TILE; v++)
            put(out + (o + i) * out_map + p * out_pixel + from + v * LANES, s[i][v]);
      }
  }
}

/* The same, seen through `W` windows: the number that `choice` says, or (`choosing`) the first of
   the largest, whose place is written there. NaN is the largest. */
static void windows_block(long span, long O, long C, long W, long taps, const int32_t *table,
                          const int32_t *windows, const float *w, long os, long cs, const float *in,
                          long in_map, long in_pixel, int choosing, int8_t *choice, float *out,
                          long out_map, long out_pixel) {
  for (long o = 0; o < O; o += 4) {
    const Weights f = four(w, o, O, os, cs);
    for (long q = 0; q < W; q++)
      for (long from = 0; from < span; from += TILE * LANES) {
        const long place = o * out_map + q * out_pixel + from;
        V best[4][TILE];
        I which[4][TILE];
        for (int j = 0; j < 4; j++) {
          V s[4][TILE];
          const int32_t *near = table + windows[q * 4 + j] * taps;
          neighbours(s, &f, C, taps, near, in + from, in_map, in_pixel);
          UNROLL for (int i = 0; i < 4; i++) {
            if (i == f.rows) break;
            UNROLL for (int v = 0; v < TILE; v++) {
              if (j == 0) {
                best[i][v] = s[i][v];
                which[i][v] =
                    choosing ? (I){0} : chosen(choice + place + i * out_map + v * LANES);
                continue;
              }
              const M now = choosing ? larger(s[i][v], best[i][v]) : equal(which[i][v], j);
              best[i][v] = choose(now, s[i][v], best[i][v]);
              if (choosing) which[i][v] = number(now, j, which[i][v]);
            }
          }
        }
        for (long i = 0; i < f.rows; i++)
          UNROLL for (int v = 0; v < TILE; v++) {
            const long to = place + i * out_map + v * LANES;
            put(out + to, best[i][v]);
            if (choosing) *(J *)(choice + to) = __builtin_convertvector(which[i][v], J);
          }
      }
  }
}

/* In a block of 64 rows, maps lie a cache line further apart than their pixels take: at a power of
   two the lines of all maps would fall into the same few places of the cache. */
#define LINE 16
#define APART(pixels) ((pixels) * BLOCK + LINE)
#define FEW 4 /* maps, which are read where they lie */

/* dw[o][c][t] += sum over p and `span` rows of d[o][p][] in[c][table[p][t]][], lane by lane: 4
   output maps by as many input maps as fit at a time, or, where there are few of those, by 3
   taps. */
static void weights_block(long span, long O, long C, long P, long taps, const int32_t *table,
                          const float *d, long d_map, long d_pixel, const float *in, long in_map,
                          long in_pixel, V *dw) {
  for (long o = 0; o < O; o += 4) {
    const long rows = O - o < 4 ? O - o : 4;
    const float *d0 = d + o * d_map, *d1 = d0 + (rows > 1) * d_map,
                *d2 = d0 + (rows > 2) * 2 * d_map, *d3 = d0 + (rows > 3) * 3 * d_map;
    if (C < FEW) {
      for (long c = 0; c < C; c++)
        for (long t = 0; t < taps; t += 3) {
          V s[4][3];
          UNROLL for (int i = 0; i < 4; i++) UNROLL for (int j = 0; j < 3; j++) s[i][j] = splat(0);
          for (long p = 0; p < P; p++) {
            const int32_t *near = table + p * taps + t;
            const float *base = in + c * in_map;
            for (long v = 0; v < span; v += LANES) {
              const long q = p * d_pixel + v;
              const V a = at(d0 + q), b = at(d1 + q), e = at(d2 + q), f = at(d3 + q);
              UNROLL for (int j = 0; j < 3; j++) if (near[j] >= 0) {
                const V x = at(base + near[j] * in_pixel + v);
                s[0][j] += a * x;
                s[1][j] += b * x;
                s[2][j] += e * x;
                s[3][j] += f * x;
              }
            }
          }
          UNROLL for (int i = 0; i < 4; i++) UNROLL for (int j = 0; j < 3; j++)
            if (i < rows) dw[((o + i) * C + c) * taps + t + j] += s[i][j];
        }
      continue;
    }
    for (long c = 0; c < C; c += TILE) {
      const long maps = C - c < TILE ? C - c : TILE;
      const float *from[TILE];
      UNROLL for (int j = 0; j < TILE; j++) from[j] = in + (c + (j < maps ? j : 0)) * in_map;
      for (long t = 0; t < taps; t++) {
        V s[4][TILE];
        UNROLL for (int i = 0; i < 4; i++) UNROLL for (int j = 0; j < TILE; j++) s[i][j] = splat(0);
        for (long p = 0; p < P; p++) {
          const long near = table[p * taps + t];
          if (near < 0) continue;
          UNROLL for (long v = 0; v < span; v += LANES) {
            const long q = p * d_pixel + v, r = near * in_pixel + v;
            const V a = at(d0 + q), b = at(d1 + q), e = at(d2 + q), f = at(d3 + q);
            UNROLL for (int j = 0; j < TILE; j++) {
              const V x = at(from[j] + r);
              s[0][j] += a * x;
              s[1][j] += b * x;
              s[2][j] += e * x;
              s[3][j] += f * x;
            }
          }
        }
        UNROLL for (int i = 0; i < 4; i++) UNROLL for (int j = 0; j < TILE; j++)
          if (i < rows && j < maps) dw[((o + i) * C + c + j) * taps + t] += s[i][j];
      }
    }
  }
}

/* Rows of a batch from `begin` on, at most 64, of maps [maps][pixels][B]. */
static void pack(const float *x, long maps, long pixels, long B, long begin, float *block) {
  const long rows = B - begin < BLOCK ? B - begin : BLOCK;
  for (long m = 0; m < maps; m++)
    for (long p = 0; p < pixels; p++) {
      const float *from = x + (m * pixels + p) * B + begin;
      float *to = block + m * APART(pixels) + p * BLOCK;
      if (rows == BLOCK) {
        UNROLL for (int v = 0; v < VECTORS; v++) put(to + v * LANES, at(from + v * LANES));
        continue;
      }
      memset(to, 0, BLOCK * sizeof(float));
      memcpy(to, from, rows * sizeof(float));
    }
}

/* Numbers of windows where they were chosen; the rest is zero. */
static void unpool(const float *d, const int8_t *choice, long maps, long W, long pixels,
                   const int32_t *windows, long B, long begin, float *block) {
  const long rows = B - begin < BLOCK ? B - begin : BLOCK;
  float some[BLOCK] = {0};
  int8_t their[BLOCK] = {0};
  for (long m = 0; m < maps; m++) {
    float *map = block + m * APART(pixels);
    if (4 * W < pixels) memset(map, 0, pixels * BLOCK * sizeof(float));
    for (long q = 0; q < W; q++) {
      const long from = (m * W + q) * B + begin;
      const float *numbers = d + from;
      const int8_t *places = choice + from;
      if (rows < BLOCK) {
        numbers = memcpy(some, numbers, rows * sizeof(float));
        places = memcpy(their, places, rows);
      }
      UNROLL for (int v = 0; v < VECTORS; v++) {
        const V x = at(numbers + v * LANES);
        const I place = chosen(places + v * LANES);
        UNROLL for (int j = 0; j < 4; j++)
          put(map + windows[q * 4 + j] * BLOCK + v * LANES,
              choose(equal(place, j), x, splat(0)));
      }
    }
  }
}

/* Maps of one task as a block reads them: where they lie, or packed. */
typedef struct {
  const float *at;
  long map, pixel;
} Maps;

static Maps maps_of(const float *x, const int8_t *choice, long maps, long W, long pixels,
                    const int32_t *windows, long B, long begin, float *block) {
  if (choice) unpool(x, choice, maps, W, pixels, windows, B, begin, block);
  else if (begin + BLOCK > B || maps > FEW) pack(x, maps, pixels, B, begin, block);
  else return (Maps){x + begin, pixels * B, B};
  return (Maps){block, APART(pixels), BLOCK};
}

/* K tasks: in [K][C][Q][B] (or, with a choice, [K][C][W][B] seen as if it had Q pixels), w [K][..],
   out [K][O][P][B]; `scratch` holds C APART(Q) + O P BLOCK numbers. */
void gather(long K, long O, long C, long P, long Q, long B, long taps, const int32_t *table,
            const float *w, long w_step, long os, long cs, const float *in, long in_step,
            float *out, float *scratch, const int8_t *choice, const int32_t *windows, long W) {
  float *made = scratch + C * APART(Q);
  for (long k = 0; k < K; k++, w += w_step, in += in_step, out += O * P * B)
    for (long b = 0; b < B; b += BLOCK) {
      const int8_t *places = choice ? choice + k * C * W * B : 0;
      const Maps x = maps_of(in, places, C, W, Q, windows, B, b, scratch);
      const long span = span_of(B, b, TILE * LANES);
      if (b + BLOCK <= B) {
        gather_block(span, O, C, P, taps, table, w, os, cs, x.at, x.map, x.pixel, out + b, P * B,
                     B);
        continue;
      }
      gather_block(span, O, C, P, taps, table, w, os, cs, x.at, x.map, x.pixel, made, P * BLOCK,
                   BLOCK);
      for (long m = 0; m < O * P; m++)
        memcpy(out + m * B + b, made + m * BLOCK, (B - b) * sizeof(float));
    }
}

/* As `gather`, out and choice [K][O][W][B]; `scratch` holds C APART(Q) + 2 O W BLOCK numbers. */
void pooled(long K, long O, long C, long W, long Q, long B, long taps, const int32_t *table,
            const float *w, long w_step, long os, long cs, const float *in, long in_step,
            float *out, float *scratch, int8_t *choice, const int32_t *windows, long choosing) {
  float *made = scratch + C * APART(Q);
  int8_t *picked = (int8_t *)(made + O * W * BLOCK);
  for (long k = 0; k < K; k++, w += w_step, in += in_step, out += O * W * B, choice += O * W * B)
    for (long b = 0; b < B; b += BLOCK) {
      const Maps x = maps_of(in, 0, C, W, Q, windows, B, b, scratch);
      const long span = span_of(B, b, TILE * LANES);
      if (b + BLOCK <= B) {
        windows_block(span, O, C, W, taps, table, windows, w, os, cs, x.at, x.map, x.pixel,
                      choosing, choice + b, out + b, W * B, B);
        continue;
      }
      memset(picked, 0, O * W * BLOCK);
      for (long m = 0; m < O * W && !choosing; m++)
        memcpy(picked + m * BLOCK, choice + m * B + b, B - b);
      windows_block(span, O, C, W, taps, table, windows, w, os, cs, x.at, x.map, x.pixel, choosing,
                    picked, made, W * BLOCK, BLOCK);
      for (long m = 0; m < O * W; m++) {
        memcpy(out + m * B + b, made + m * BLOCK, (B - b) * sizeof(float));
        if (choosing) memcpy(choice + m * B + b, picked + m * BLOCK, B - b);
      }
    }
}

/* d [K][O][P][B] (with a choice [K][O][W][B]), in [K][C][Q][B], dw [K][O][C][taps]; `lanes` holds
   O C taps vectors, `scratch` C APART(Q) + O APART(P) numbers. */
void weights(long K, long O, long C, long P, long Q, long B, long taps, const int32_t *table,
             const float *d, long d_step, const float *in, long in_step, float *dw, float *scratch,
             float *lanes, const int8_t *choice, const int32_t *windows, long W) {
  V *total = (V *)lanes;
  for (long k = 0; k < K; k++, d += d_step, in += in_step, dw += O * C * taps) {
    const int8_t *places = choice ? choice + k * O * W * B : 0;
    memset(total, 0, O * C * taps * sizeof(V));
    for (long b = 0; b < B; b += BLOCK) {
      const Maps x = maps_of(in, 0, C, W, Q, windows, B, b, scratch);
      const Maps e = maps_of(d, places, O, W, P, windows, B, b, scratch + C * APART(Q));
      weights_block(span_of(B, b, LANES), O, C, P, taps, table, e.at, e.map, e.pixel, x.at, x.map,
                    x.pixel, total);
    }
    for (long i = 0; i < O * C * taps; i++) dw[i] = sum(total[i]);
  }
}
