// A sample of each tensor: its last move by the optimizer, and what that did by the gradient now.
// It lies in lines of 8 numbers, `gap` apart: a line of memory is fetched whole anyway.
#define LINE 8
#ifdef __AVX512F__
#define WIDTH 8 // so many doubles are a vector of the processor
#else
#define WIDTH 4
#endif
typedef float V __attribute__((vector_size(4 * WIDTH)));
typedef float U __attribute__((vector_size(4 * WIDTH), aligned(4)));
typedef int I __attribute__((vector_size(4 * WIDTH)));
typedef double D __attribute__((vector_size(8 * WIDTH)));
#define ALL_OF_A_LINE _Pragma("GCC unroll 2") for (int h = 0; h < LINE; h += WIDTH)
#define WIDE(x) __builtin_convertvector(x, D)

struct watched {
    long tensors;
    const long *places, *counts, *gaps, *begins; // of the tensors in the list, and of the others
    const double *weights;                       // for how many numbers one of the sample stands
    float *old, *move;
    double *firsts, *sums;
};

static double total(const D *x)
{
    double sum = 0;
    for (int k = 0; k < WIDTH; k++)
        sum += (*x)[k];
    return sum;
}

// sums: of weight * gradient * move, weight * |gradient|, weight * move^2, weight * change^2 of
// whatever else has changed the parameters since, the first |gradient| of each tensor, and weight.
void look(const struct watched *w, const long *params, const long *grads)
{
    double along = 0, size = 0, moved = 0, changed = 0, first = 0, numbers = 0;
    for (long k = 0; k < w->tensors; k++) {
        const long i = w->places[k], n = w->counts[i], gap = w->gaps[i];
        const float *p = (const float *)params[k], *g = (const float *)grads[k];
        const float *step = w->move + w->begins[i];
        float *before = w->old + w->begins[i];
        D a = {0}, s = {0}, m = {0}, c = {0};
        long j = 0;
        for (; j + LINE <= n; j += LINE, p += gap, g += gap)
            ALL_OF_A_LINE {
                const V now = *(const U *)(p + h), slope = *(const U *)(g + h);
                const D other = WIDE(now - *(const U *)(before + j + h));
                const D d = WIDE(*(const U *)(step + j + h));
                const V steep = (V)((I)slope & 0x7fffffff);
                a += WIDE(slope) * d;
                s += WIDE(steep);
                m += d * d;
                c += other * other;
                *(U *)(before + j + h) = now;
            }
        for (long r = 0; j < n; j++, r++) {
            const double up = g[r], d = step[j], other = p[r] - before[j];
            a[0] += up * d, s[0] += __builtin_fabs(up), m[0] += d * d, c[0] += other * other;
            before[j] = p[r];
        }
        const double weight = w->weights[i], sum = total(&s) * weight;
        if (w->firsts[i] == 0)
            w->firsts[i] = sum;
        first += w->firsts[i], size += sum, numbers += n * weight;
        along += total(&a) * weight, moved += total(&m) * weight, changed += total(&c) * weight;
    }
    const double sums[] = {along, size, moved, changed, first, numbers};
    for (int k = 0; k < 6; k++)
        w->sums[k] = sums[k];
}

// The optimizer has moved the parameters.
void follow(const struct watched *w, const long *params)
{
    for (long k = 0; k < w->tensors; k++) {
        const long i = w->places[k], n = w->counts[i], gap = w->gaps[i];
        const float *p = (const float *)params[k];
        float *before = w->old + w->begins[i], *step = w->move + w->begins[i];
        long j = 0;
        for (; j + LINE <= n; j += LINE, p += gap)
            ALL_OF_A_LINE {
                const V now = *(const U *)(p + h);
                *(U *)(step + j + h) = now - *(const U *)(before + j + h);
                *(U *)(before + j + h) = now;
            }
        for (long r = 0; j < n; j++, r++) {
            step[j] = p[r] - before[j];
            before[j] = p[r];
        }
    }
}
