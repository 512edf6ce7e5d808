/* Convolutions of maps whose last dimension are the rows of a batch, by a table of neighbours:
   table[p * taps + t] is the pixel of the input that tap t of output pixel p reads, or -1. */

/* out[o][p][] = sum over c, t of w[o][c][t] in[c][table[p][t]][], for 64 rows of the batch; `os` and
   `cs` are the strides of w over o and c. */
static void gather_block(long O, long C, long P, long taps, const int32_t *table, const float *w,
                         long os, long cs, const float *in, long in_map, long in_pixel, float *out,
                         long out_map, long out_pixel) {
  for (long o = 0; o < O; o += 4) {
    const long rows = O - o < 4 ? O - o : 4;
    const float *w0 = w + o * os, *w1 = w0 + (rows > 1) * os, *w2 = w0 + (rows > 2) * 2 * os,
                *w3 = w0 + (rows > 3) * 3 * os;
    for (long p = 0; p < P; p++) {
      V s[4][VECTORS];
      UNROLL for (int i = 0; i < 4; i++) UNROLL for (int v = 0; v < VECTORS; v++) s[i][v] = splat(0);
      for (long t = 0; t < taps; t++) {
        const long from = table[p * taps + t];
        if (from < 0) continue;
        const float *x = in + from * in_pixel;
        for (long c = 0; c < C; c++, x += in_map) {
          V a[VECTORS];
          UNROLL for (int v = 0; v < VECTORS; v++) a[v] = at(x + v * LANES);
          const long k = c * cs + t;
          const V f0 = splat(w0[k]), f1 = splat(w1[k]), f2 = splat(w2[k]), f3 = splat(w3[k]);
          UNROLL for (int v = 0; v < VECTORS; v++) {
            s[0][v] += f0 * a[v];
            s[1][v] += f1 * a[v];
            s[2][v] += f2 * a[v];
            s[3][v] += f3 * a[v];
          }
        }
      }
      for (long i = 0; i < rows; i++)
        UNROLL for (int v = 0; v < VECTORS; v++)
          put(out + (o + i) * out_map + p * out_pixel + v * LANES, s[i][v]);
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

/* The last rows of a batch, between maps [maps][B] and blocks of 64. */
static void pack(const float *x, long maps, long B, long begin, float *block) {
  for (long m = 0; m < maps; m++) {
    memset(block + m * BLOCK, 0, BLOCK * sizeof(float));
    memcpy(block + m * BLOCK, x + m * B + begin, (B - begin) * sizeof(float));
  }
}

/* K tasks: in [K][C][Q][B], w [K][..], out [K][O][P][B]; `scratch` holds (C Q + O P) blocks. */
void gather(long K, long O, long C, long P, long Q, long B, long taps, const int32_t *table,
            const float *w, long w_step, long os, long cs, const float *in, long in_step, float *out,
            float *scratch) {
  for (long k = 0; k < K; k++, w += w_step, in += in_step, out += O * P * B) {
    long b = 0;
    for (; b + BLOCK <= B; b += BLOCK)
      gather_block(O, C, P, taps, table, w, os, cs, in + b, Q * B, B, out + b, P * B, B);
    if (b < B) {
      float *made = scratch + C * Q * BLOCK;
      pack(in, C * Q, B, b, scratch);
      gather_block(O, C, P, taps, table, w, os, cs, scratch, Q * BLOCK, BLOCK, made, P * BLOCK,
                   BLOCK);
      for (long m = 0; m < O * P; m++)
        memcpy(out + m * B + b, made + m * BLOCK, (B - b) * sizeof(float));
    }
  }
}

/* d [K][O][P][B], in [K][C][Q][B], dw [K][O][C][taps]; `lanes` holds O C taps vectors. */
void weights(long K, long O, long C, long P, long Q, long B, long taps, const int32_t *table,
             const float *d, long d_step, const float *in, long in_step, float *dw, float *scratch,
             float *lanes) {
  V *total = (V *)lanes;
  for (long k = 0; k < K; k++, d += d_step, in += in_step, dw += O * C * taps) {
    memset(total, 0, O * C * taps * sizeof(V));
    long b = 0;
    for (; b + BLOCK <= B; b += BLOCK)
      weights_block(O, C, P, taps, table, d + b, P * B, B, in + b, Q * B, B, total);
    if (b < B) {
      float *seeds = scratch + C * Q * BLOCK;
      pack(in, C * Q, B, b, scratch);
      pack(d, O * P, B, b, seeds);
      weights_block(O, C, P, taps, table, seeds, P * BLOCK, BLOCK, scratch, Q * BLOCK, BLOCK, total);
    }
    for (long i = 0; i < O * C * taps; i++) dw[i] = sum(total[i]);
  }
}
