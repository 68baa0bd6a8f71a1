/* What a CPU does between the matrix products of a strip: layer norm, depthwise convolution and the GDFN's gate, in one
 * pass over memory each. basicsr/ops/cpu_kernels.py compiles this file and calls it; one thread runs each call.
 *
 * Features are rows of pixels, channels last and contiguous, in float32 or bfloat16 (of type uint16_t here); parameters,
 * arithmetic and sums are in float32. There are at least BLOCK channels: the last block of a pixel begins earlier where
 * they are no multiple, and writes some results twice. `name_TYPE` is the kernel for features of that type: the file
 * includes itself once for each.
 */

#ifndef TYPE

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#define BLOCK (2 * LANES)

#define INLINE static inline __attribute__((always_inline))

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef uint32_t Bits __attribute__((vector_size(4 * LANES)));
typedef int32_t Integers __attribute__((vector_size(4 * LANES)));

/* BLOCK channels of a pixel. For float, the first half and the second half; for bfloat16, those at even and at odd
 * places: a 32-bit word holds one of each, and each is taken out of it by one instruction. */
typedef struct {
    Floats a, b;
} Pair;

INLINE Floats load(const float *from) {
    Floats values;
    memcpy(&values, from, sizeof values);
    return values;
}

INLINE void store(float *to, Floats values) { memcpy(to, &values, sizeof values); }

INLINE Integers count(void) {
    Integers lanes;
    for (int lane = 0; lane < LANES; lane++) lanes[lane] = lane;
    return lanes;
}

INLINE float sum(Floats values) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps(values);
#else
    float total = 0;
    for (int lane = 0; lane < LANES; lane++) total += values[lane];
    return total;
#endif
}

INLINE Floats choose(Integers mask, Floats a, Floats b) { return (Floats)((mask & (Integers)a) | (~mask & (Integers)b)); }

/* Each number, or -most or most if it is beyond. */
INLINE Floats clamp(Floats values, float most) {
    Floats upper = (Floats){0} + most;
#if defined(__AVX512F__)
    return _mm512_max_ps(-upper, _mm512_min_ps(upper, values));
#else
    values = choose(values > upper, upper, values);
    return choose(values < -upper, -upper, values);
#endif
}

/* p / q, to a few units in the last place */
INLINE Floats quotient(Floats p, Floats q) {
#if defined(__AVX512F__)
    Floats r = _mm512_rcp14_ps(q);
    return p * (r * (2 - q * r)); /* a step of Newton's method; a division takes as long as 16 such products */
#else
    return p / q;
#endif
}

INLINE Pair load_float(const float *from) { return (Pair){load(from), load(from + LANES)}; }

INLINE void store_float(float *to, Pair values) {
    store(to, values.a);
    store(to + LANES, values.b);
}

INLINE Pair load_uint16_t(const uint16_t *from) {
    Bits words;
    memcpy(&words, from, sizeof words);
    return (Pair){(Floats)(words << 16), (Floats)(words & 0xffff0000)};
}

/* To the nearest bfloat16, or the even one of two, in the upper half of each word. A NaN remains one if the lower
 * half of its word is zero, as in the NaNs of processors, of bfloat16 and of PyTorch. */
INLINE Bits rounded(Floats values) {
    Bits bits = (Bits)values;
    return bits + 0x7fff + ((bits >> 16) & 1);
}

INLINE void store_uint16_t(uint16_t *to, Pair values) {
    Bits words = (rounded(values.a) >> 16) | (rounded(values.b) & 0xffff0000);
    memcpy(to, &words, sizeof words);
}

/* Parameters and results in float32, in the order of channels. */
INLINE Pair load_full_float(const float *from) { return load_float(from); }

INLINE void store_full_float(float *to, Pair values) { store_float(to, values); }

#if defined(__clang__) /* has no shuffle by a vector */
INLINE Pair load_full_uint16_t(const float *from) {
    Pair values;
    for (int lane = 0; lane < LANES; lane++) values.a[lane] = from[2 * lane], values.b[lane] = from[2 * lane + 1];
    return values;
}

INLINE void store_full_uint16_t(float *to, Pair values) {
    for (int lane = 0; lane < LANES; lane++) to[2 * lane] = values.a[lane], to[2 * lane + 1] = values.b[lane];
}
#else
INLINE Pair load_full_uint16_t(const float *from) {
    Floats first = load(from), second = load(from + LANES);
    return (Pair){__builtin_shuffle(first, second, 2 * count()), __builtin_shuffle(first, second, 2 * count() + 1)};
}

INLINE void store_full_uint16_t(float *to, Pair values) {
    Integers first = count() / 2 + (count() & 1) * LANES;
    store(to, __builtin_shuffle(values.a, values.b, first));
    store(to + LANES, __builtin_shuffle(values.a, values.b, first + LANES / 2));
}
#endif

/* x · (1 + erf(x / √2)) / 2, to 1.2e-6. The quotient of polynomials, fitted to erf(t) / t, gives erf to 1.3e-7, and a
 * little more than 1 at t = 4, where erf is 1 in float32: a large negative x gives exactly zero. */
INLINE Floats gelu(Floats x) {
    Floats t = clamp(x * 0.70710678f, 4), y = t * t;
    Floats p = y * 1.96256633e-06f + 0.0002889795f;
    p = p * y + 0.00405961787f;
    p = p * y + 0.0536449067f;
    p = p * y + 0.197615862f;
    p = p * y + 1.12837899f;
    Floats q = y * 3.73951407e-05f + 0.0012291529f;
    q = q * y + 0.0155588994f;
    q = q * y + 0.117038168f;
    q = q * y + 0.508463442f;
    q = q * y + 1;
    return 0.5f * x * (1 + clamp(t * quotient(p, q), 1));
}

/* square_K += the sum over pixels of the squares; the first pixels of n rows, `stride` numbers apart. */
void add_squares(long n, long pixels, long stride, long K, const float *x, float *square_K) {
    float row_K[K];
    for (; n--; x += stride) {
        for (long k = 0; k < K; k++) row_K[k] = 0;
        for (long i = 0; i < pixels; i++)
            for (long k = 0; k < K; k++) row_K[k] += x[i * K + k] * x[i * K + k];
        for (long k = 0; k < K; k++) square_K[k] += row_K[k];
    }
}

#define JOINED(a, b) a##_##b
#define EXPANDED(a, b) JOINED(a, b)
#define OF_TYPE(name) EXPANDED(name, TYPE)

#define TYPE float
#include "cpu_kernels.c"
#undef TYPE
#define TYPE uint16_t
#include "cpu_kernels.c"

#else

/* A 3×3 filter of BLOCK channels that walks along a row. The result of a column is known once the next one is read. */
typedef struct {
    Pair taps[9], bias;
    Pair last, here; /* the unfinished results of the column before and of the current one */
} OF_TYPE(Filter);

/* taps: 9 × K */
INLINE void OF_TYPE(start)(OF_TYPE(Filter) *f, const float *taps, const float *bias, long K) {
    for (int tap = 0; tap < 9; tap++) f->taps[tap] = OF_TYPE(load_full)(taps + tap * K);
    f->bias = bias ? OF_TYPE(load_full)(bias) : (Pair){{0}, {0}};
}

/* Reads a column of three rows, `row` numbers apart; returns the result of the column before. */
INLINE Pair OF_TYPE(next)(OF_TYPE(Filter) *f, const TYPE *x, long row) {
    Pair top = OF_TYPE(load)(x), middle = OF_TYPE(load)(x + row), bottom = OF_TYPE(load)(x + 2 * row);
#define COLUMN(c, half) (top.half * f->taps[c].half + middle.half * f->taps[3 + c].half + bottom.half * f->taps[6 + c].half)
#define BOTH(sum, c) ((Pair){sum.a + COLUMN(c, a), sum.b + COLUMN(c, b)})
    Pair result = BOTH(f->last, 2);
    f->last = BOTH(f->here, 1);
    f->here = BOTH(f->bias, 0);
    return result;
}

INLINE void OF_TYPE(first)(OF_TYPE(Filter) *f, const TYPE *x, long row) {
    f->last = f->here = f->bias;
    OF_TYPE(next)(f, x, row);
}

#define EACH_BLOCK(k, K) for (long k = 0; k < K; k = k + BLOCK < K && k + 2 * BLOCK > K ? K - BLOCK : k + BLOCK)

/* Into y, or in float32 into full. */
INLINE void OF_TYPE(convolve)(
    long n, long W, long K, const TYPE *x, const float *taps, const float *bias, TYPE *y, float *full
) {
    long row = W * K;
    for (long start = 0; start < n * row; start += row) {
        EACH_BLOCK(k, K) {
            OF_TYPE(Filter) f;
            OF_TYPE(start)(&f, taps + k, bias ? bias + k : 0, K);
            OF_TYPE(first)(&f, x + start + k, row);
            for (long j = k; j < row; j += K) {
                Pair result = j + K < row ? OF_TYPE(next)(&f, x + start + j + K, row) : f.last;
                if (full) OF_TYPE(store_full)(full + start + j, result);
                else OF_TYPE(store)(y + start + j, result);
            }
        }
    }
}

/* (n + 2, W, K) → (n, W, K) */
void OF_TYPE(depthwise)(long n, long W, long K, const TYPE *x, const float *taps, const float *bias, TYPE *y) {
    OF_TYPE(convolve)(n, W, K, x, taps, bias, y, 0);
}

/* The same with the result in float32. */
void OF_TYPE(depthwise_full)(long n, long W, long K, const TYPE *x, const float *taps, const float *bias, float *y) {
    OF_TYPE(convolve)(n, W, K, x, taps, bias, 0, y);
}

INLINE Pair OF_TYPE(gate)(Pair gate, Pair value) {
    return (Pair){gelu(gate.a) * value.a, gelu(gate.b) * value.b};
}

/* (n + 2, W, 2K) → (n, W, K): GELU of the convolved first half of the channels, times the convolved second half. */
void OF_TYPE(gated_depthwise)(long n, long W, long K, const TYPE *x, const float *taps, const float *bias, TYPE *y) {
    for (long row = 2 * W * K; n--; x += row, y += row / 2) {
        EACH_BLOCK(k, K) {
            OF_TYPE(Filter) gate, value;
            OF_TYPE(start)(&gate, taps + k, bias ? bias + k : 0, 2 * K);
            OF_TYPE(start)(&value, taps + K + k, bias ? bias + K + k : 0, 2 * K);
            OF_TYPE(first)(&gate, x + k, row);
            OF_TYPE(first)(&value, x + K + k, row);
            for (long j = 1; j < W; j++) {
                const TYPE *pixel = x + 2 * j * K + k;
                Pair gates = OF_TYPE(next)(&gate, pixel, row);
                OF_TYPE(store)(y + (j - 1) * K + k, OF_TYPE(gate)(gates, OF_TYPE(next)(&value, pixel + K, row)));
            }
            OF_TYPE(store)(y + (W - 1) * K + k, OF_TYPE(gate)(gate.last, value.last));
        }
    }
}

/* What layer norm knows of a block of channels. */
typedef struct {
    Pair weight, bias, counts; /* counts: 0 for channels that are in the block before as well, else 1 */
    long at;
} OF_TYPE(Part);

/* `rows` pixels at once: the sums of one take long to become known, and meanwhile there is work on the others. */
INLINE void OF_TYPE(normalize)(
    int rows, long C, long parts, const OF_TYPE(Part) *part, const TYPE *x, int centred, float eps, TYPE *y
) {
    Floats total[rows], squares[rows];
    float mean[rows], scale[rows];
    for (int row = 0; row < rows; row++) total[row] = squares[row] = (Floats){0};
    for (long k = 0; k < parts; k++)
        for (int row = 0; row < rows; row++) {
            Pair v = OF_TYPE(load)(x + row * C + part[k].at);
            total[row] += v.a * part[k].counts.a + v.b * part[k].counts.b;
        }
    for (int row = 0; row < rows; row++) mean[row] = sum(total[row]) / C;
    for (long k = 0; k < parts; k++)
        for (int row = 0; row < rows; row++) {
            Pair v = OF_TYPE(load)(x + row * C + part[k].at);
            v.a -= mean[row], v.b -= mean[row];
            squares[row] += v.a * v.a * part[k].counts.a + v.b * v.b * part[k].counts.b;
        }
    for (int row = 0; row < rows; row++) {
        scale[row] = 1 / sqrtf(sum(squares[row]) / C + eps);
        mean[row] = centred ? mean[row] : 0;
    }
    for (long k = 0; k < parts; k++)
        for (int row = 0; row < rows; row++) {
            Pair v = OF_TYPE(load)(x + row * C + part[k].at);
            v.a = (v.a - mean[row]) * (scale[row] * part[k].weight.a) + part[k].bias.a;
            v.b = (v.b - mean[row]) * (scale[row] * part[k].weight.b) + part[k].bias.b;
            OF_TYPE(store)(y + row * C + part[k].at, v);
        }
}

/* (N, C) → (N, C). Without a bias, the mean is not subtracted. */
void OF_TYPE(layer_norm)(long N, long C, const TYPE *x, const float *weight, const float *bias, float eps, TYPE *y) {
    long parts = (C + BLOCK - 1) / BLOCK;
    OF_TYPE(Part) part[parts];
    for (long k = 0; k < parts; k++) {
        float counts[BLOCK];
        long at = part[k].at = k < parts - 1 ? k * BLOCK : C - BLOCK;
        for (long c = 0; c < BLOCK; c++) counts[c] = at + c >= k * BLOCK;
        part[k].counts = OF_TYPE(load_full)(counts);
        part[k].weight = OF_TYPE(load_full)(weight + at);
        part[k].bias = bias ? OF_TYPE(load_full)(bias + at) : (Pair){{0}, {0}};
    }
    for (; N >= 4; N -= 4, x += 4 * C, y += 4 * C) OF_TYPE(normalize)(4, C, parts, part, x, bias != 0, eps, y);
    for (; N; N--, x += C, y += C) OF_TYPE(normalize)(1, C, parts, part, x, bias != 0, eps, y);
}

#endif
