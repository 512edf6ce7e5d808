
/* Convolutions of maps whose last dimension are the rows of a batch, by a table of neighbours:
   table[p * taps + t] is the pixel of the input that tap t of output pixel p reads, or -1.

   A map may be seen through windows of 2x2 pixels, one of which is chosen for each number: then
   windows[q * 4 + j] are the pixels of window q, and choice[q][] is a j. */

typedef int8_t J __attribute__((vector_size(16), aligned(1)));
INLINE I chosen(const int8_t *p) { return __builtin_convertvector(*(const J *)p, I); }

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

/* s[i] = sum over c, t of w[i][c][t] in[c][near[t]][], for 64 rows of the batch. */
INLINE void neighbours(V s[4][VECTORS], const Weights *w, long C, long taps, const int32_t *near,
                       const float *in, long in_map, long in_pixel) {
  const float *w0 = w->row[0], *w1 = w->row[1], *w2 = w->row[2], *w3 = w->row[3];
  UNROLL for (int i = 0; i < 4; i++) UNROLL for (int v = 0; v < VECTORS; v++) s[i][v] = splat(0);
  for (long t = 0; t < taps; t++) {
    if (near[t] < 0) continue;
    const float *x = in + near[t] * in_pixel;
    for (long c = 0; c < C; c++, x += in_map) {
      V a[VECTORS];
      UNROLL for (int v = 0; v < VECTORS; v++) a[v] = at(x + v * LANES);
      const long k = c * w->cs + t;
      const V f0 = splat(w0[k]), f1 = splat(w1[k]), f2 = splat(w2[k]), f3 = splat(w3[k]);
      UNROLL for (int v = 0; v < VECTORS; v++) {
        s[0][v] += f0 * a[v];
        s[1][v] += f1 * a[v];
        s[2][v] += f2 * a[v];
        s[3][v] += f3 * a[v];
      }
    }
  }
}

/* out[o][p][] = sum over c, t of w[o][c][t] in[c][table[p][t]][], for 64 rows of the batch; `os` and
   `cs` are the strides of w over o and c. */
static void gather_block(long O, long C, long P, long taps, const int32_t *table, const float *w,
                         long os, long cs, const float *in, long in_map, long in_pixel, float *out,
                         long out_map, long out_pixel) {
  for (long o = 0; o < O; o += 4) {
    const Weights f = four(w, o, O, os, cs);
    for (long p = 0; p < P; p++) {
      V s[4][VECTORS];
      neighbours(s, &f, C, taps, table + p * taps, in, in_map, in_pixel);
      for (long i = 0; i < f.rows; i++)
        UNROLL for (int v = 0; v < VECTORS; v++)
          put(out + (o + i) * out_map + p * out_pixel + v * LANES, s[i][v]);
    }
  }
}

/* The same, seen through `W` windows: the number that `choice` says, or (`choosing`) the first of the
   largest, whose place is written there. NaN is the largest. */
static void windows_block(long O, long C, long W, long taps, const int32_t *table,
                          const int32_t *windows, const float *w, long os, long cs, const float *in,
                          long in_map, long in_pixel, int choosing, int8_t *choice, float *out,
                          long out_map, long out_pixel) {
  for (long o = 0; o < O; o += 4) {
    const Weights f = four(w, o, O, os, cs);
    for (long q = 0; q < W; q++) {
      const long place = o * out_map + q * out_pixel;
      V best[4][VECTORS];
      I which[4][VECTORS];
      for (int j = 0; j < 4; j++) {
        V s[4][VECTORS];
        neighbours(s, &f, C, taps, table + windows[q * 4 + j] * taps, in, in_map, in_pixel);
        for (long i = 0; i < f.rows; i++)
          UNROLL for (int v = 0; v < VECTORS; v++) {
            if (j == 0) {
              best[i][v] = s[i][v];
              which[i][v] = choosing ? (I){0} : chosen(choice + place + i * out_map + v * LANES);
              continue;
            }
            const I now = (I){0} + j;
            const I better = choosing ? (s[i][v] > best[i][v]) | ~ordered(s[i][v]) : which[i][v] == now;
            best[i][v] = pick(better, s[i][v], best[i][v]);
            if (choosing) which[i][v] = (better & now) | (~better & which[i][v]);
          }
      }
      for (long i = 0; i < f.rows; i++)
        UNROLL for (int v = 0; v < VECTORS; v++) {
          const long to = place + i * out_map + v * LANES;
          put(out + to, best[i][v]);
          if (choosing) *(J *)(choice + to) = __builtin_convertvector(which[i][v], J);
        }
    }
  }
}

/* dw[o][c][t] += sum over p and 64 rows of d[o][p][] in[c][table[p][t]][], lane by lane. */
static void weights_block(long O, long C, long P, long taps, const int32_t *table, const float *d,
                          long d_map, long d_pixel, const float *in, long in_map, long in_pixel,
                          V *dw) {
  for (long o = 0; o < O; o += 4) {
    const long rows = O - o < 4 ? O - o : 4;
    const float *d0 = d + o * d_map, *d1 = d0 + (rows > 1) * d_map,
                *d2 = d0 + (rows > 2) * 2 * d_map, *d3 = d0 + (rows > 3) * 3 * d_map;
    for (long c = 0; c < C; c++)
      for (long t = 0; t < taps; t += 3) {
        V s[4][3];
        UNROLL for (int i = 0; i < 4; i++) UNROLL for (int j = 0; j < 3; j++) s[i][j] = splat(0);
        for (long p = 0; p < P; p++) {
          const int32_t *near = table + p * taps + t;
          const float *base = in + c * in_map;
          for (int v = 0; v < BLOCK; v += LANES) {
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
        for (long i = 0; i < rows; i++)
          UNROLL for (int j = 0; j < 3; j++) dw[((o + i) * C + c) * taps + t + j] += s[i][j];
      }
  }
}

/* Rows of a batch from `begin` on, at most 64, between maps [maps][B] and blocks of 64. */
static void pack(const float *x, long maps, long B, long begin, float *block) {
  for (long m = 0; m < maps; m++) {
    memset(block + m * BLOCK, 0, BLOCK * sizeof(float));
    memcpy(block + m * BLOCK, x + m * B + begin, (B - begin) * sizeof(float));
  }
}

/* Numbers of windows where they were chosen, [maps][pixels] blocks; the rest is zero. */
static void unpool(const float *d, const int8_t *choice, long maps, long W, long pixels,
                   const int32_t *windows, long B, long begin, float *block) {
  const long rows = B - begin < BLOCK ? B - begin : BLOCK;
  float x[BLOCK] = {0};
  int8_t c[BLOCK] = {0};
  memset(block, 0, maps * pixels * BLOCK * sizeof(float));
  for (long m = 0; m < maps; m++)
    for (long q = 0; q < W; q++) {
      const long from = (m * W + q) * B + begin;
      memcpy(x, d + from, rows * sizeof(float));
      memcpy(c, choice + from, rows);
      for (int j = 0; j < 4; j++)
        UNROLL for (int v = 0; v < VECTORS; v++)
          put(block + (m * pixels + windows[q * 4 + j]) * BLOCK + v * LANES,
              pick(chosen(c + v * LANES) == (I){0} + j, at(x + v * LANES), splat(0)));
    }
}

/* K tasks: in [K][C][Q][B] (or, with a choice, [K][C][W][B] seen as if it had Q pixels), w [K][..],
   out [K][O][P][B]; `scratch` holds (C Q + O P) blocks where there are rows beyond the last block or
   a choice. */
void gather(long K, long O, long C, long P, long Q, long B, long taps, const int32_t *table,
            const float *w, long w_step, long os, long cs, const float *in, long in_step, float *out,
            float *scratch, const int8_t *choice, const int32_t *windows, long W) {
  for (long k = 0; k < K; k++, w += w_step, in += in_step, out += O * P * B) {
    for (long b = 0; b < B; b += BLOCK) {
      const int whole = b + BLOCK <= B;
      float *made = whole ? out + b : scratch + C * Q * BLOCK;
      const long made_pixel = whole ? B : BLOCK;
      if (choice) unpool(in, choice + k * C * W * B, C, W, Q, windows, B, b, scratch);
      else if (!whole) pack(in, C * Q, B, b, scratch);
      const int packed = choice || !whole;
      const float *from = packed ? scratch : in + b;
      const long from_pixel = packed ? BLOCK : B;
      gather_block(O, C, P, taps, table, w, os, cs, from, Q * from_pixel, from_pixel, made,
                   P * made_pixel, made_pixel);
      if (!whole)
        for (long m = 0; m < O * P; m++)
          memcpy(out + m * B + b, made + m * BLOCK, (B - b) * sizeof(float));
    }
  }
}

/* As `gather`, out and choice [K][O][W][B]; `scratch` holds (C Q + 2 O W) blocks where there are rows
   beyond the last block. */
void pooled(long K, long O, long C, long W, long Q, long B, long taps, const int32_t *table,
            const float *w, long w_step, long os, long cs, const float *in, long in_step, float *out,
            float *scratch, int8_t *choice, const int32_t *windows, long choosing) {
  for (long k = 0; k < K; k++, w += w_step, in += in_step, out += O * W * B, choice += O * W * B) {
    long b = 0;
    for (; b + BLOCK <= B; b += BLOCK)
      windows_block(O, C, W, taps, table, windows, w, os, cs, in + b, Q * B, B, choosing, choice + b,
                    out + b, W * B, B);
    if (b < B) {
      float *made = scratch + C * Q * BLOCK;
      int8_t *picked = (int8_t *)(made + O * W * BLOCK);
      pack(in, C * Q, B, b, scratch);
      memset(picked, 0, O * W * BLOCK);
      for (long m = 0; m < O * W && !choosing; m++)
        memcpy(picked + m * BLOCK, choice + m * B + b, B - b);
      windows_block(O, C, W, taps, table, windows, w, os, cs, scratch, Q * BLOCK, BLOCK, choosing,
                    picked, made, W * BLOCK, BLOCK);
      for (long m = 0; m < O * W; m++) {
        memcpy(out + m * B + b, made + m * BLOCK, (B - b) * sizeof(float));
        if (choosing) memcpy(choice + m * B + b, picked + m * BLOCK, B - b);
      }
    }
  }
}

/* d [K][O][P][B] (with a choice [K][O][W][B]), in [K][C][Q][B], dw [K][O][C][taps]; `lanes` holds
   O C taps vectors, `scratch` as for `gather`. */
void weights(long K, long O, long C, long P, long Q, long B, long taps, const int32_t *table,
             const float *d, long d_step, const float *in, long in_step, float *dw, float *scratch,
             float *lanes, const int8_t *choice, const int32_t *windows, long W) {
  V *total = (V *)lanes;
  for (long k = 0; k < K; k++, d += d_step, in += in_step, dw += O * C * taps) {
    memset(total, 0, O * C * taps * sizeof(V));
    for (long b = 0; b < B; b += BLOCK) {
      const int whole = b + BLOCK <= B;
      float *seeds = scratch + C * Q * BLOCK;
      if (choice) unpool(d, choice + k * O * W * B, O, W, P, windows, B, b, seeds);
      else if (!whole) pack(d, O * P, B, b, seeds);
      if (!whole) pack(in, C * Q, B, b, scratch);
      const int packed = choice || !whole;
      const long d_pixel = packed ? BLOCK : B, in_pixel = whole ? B : BLOCK;
      weights_block(O, C, P, taps, table, packed ? seeds : d + b, P * d_pixel, d_pixel,
                    whole ? in + b : scratch, Q * in_pixel, in_pixel, total);
    }
    for (long i = 0; i < O * C * taps; i++) dw[i] = sum(total[i]);
  }
}
