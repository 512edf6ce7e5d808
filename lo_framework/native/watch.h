// A sample of each tensor: its last move by the optimizer, and what that did by the gradient now.

// sums: of weight * gradient * move, weight * |gradient|, weight * move^2, weight * change^2 of
// whatever else has changed the parameters since, and the first |gradient| of each tensor.
void look(long tensors, const long *places, const long *params, const long *grads,
          const long *counts, const long *strides, const long *begins, float *old,
          const float *move, double *firsts, double *sums)
{
    double along = 0, size = 0, moved = 0, changed = 0, first = 0;
    for (long k = 0; k < tensors; k++) {
        const long i = places[k], n = counts[i], stride = strides[i];
        const float *p = (const float *)params[k], *g = (const float *)grads[k];
        const float *step = move + begins[i];
        float *before = old + begins[i];
        double a = 0, s = 0, m = 0, c = 0;
        for (long j = 0; j < n; j++) {
            const float now = p[j * stride], slope = g[j * stride], other = now - before[j];
            a += (double)slope * step[j];
            s += __builtin_fabsf(slope);
            m += (double)step[j] * step[j];
            c += (double)other * other;
            before[j] = now;
        }
        if (firsts[i] == 0)
            firsts[i] = s * stride;
        first += firsts[i];
        along += a * stride, size += s * stride, moved += m * stride, changed += c * stride;
    }
    sums[0] = along, sums[1] = size, sums[2] = moved, sums[3] = changed, sums[4] = first;
}

// The optimizer has moved the parameters.
void follow(long tensors, const long *places, const long *params, const long *counts,
            const long *strides, const long *begins, float *old, float *move)
{
    for (long k = 0; k < tensors; k++) {
        const long i = places[k], n = counts[i], stride = strides[i];
        const float *p = (const float *)params[k];
        float *before = old + begins[i], *step = move + begins[i];
        for (long j = 0; j < n; j++) {
            const float now = p[j * stride];
            step[j] = now - before[j];
            before[j] = now;
        }
    }
}
