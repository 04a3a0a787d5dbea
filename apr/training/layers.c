/* What a decoder layer does between its matrix products in training, with gradients.
 *
 * Rows are the tokens of a packed row of threads; everything is row-major. What matrix products read and write
 * is `real`: float, or with -DBFLOAT16 bfloat16; all sums are float. Gradients of weights are added to what is
 * there, and in apr_norm_backward that of x; all else is written.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../core/exponential.h"

#define INLINE static inline __attribute__((always_inline))
#define LANES 16
#define ROWS 8 /* of a product that are summed at the same time: two vectors each fill half of the registers */
typedef float vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

#ifdef BFLOAT16
typedef uint16_t real;
INLINE float get(real x) {
    union { uint32_t bits; float value; } y = {(uint32_t)x << 16};
    return y.value;
}
INLINE real put(float x) { /* to nearest, ties to even */
    union { float value; uint32_t bits; } y = {x};
    return (y.bits + 0x7fff + (y.bits >> 16 & 1)) >> 16;
}
#else
typedef float real;
INLINE float get(real x) { return x; }
INLINE real put(float x) { return x; }
#endif

INLINE float dot(const float *x, const float *y, int64_t d) {
    float total = 0.0f;
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < d; i++) total += x[i] * y[i];
    return total;
}

INLINE void get_all(int64_t d, const real *x, float *out) {
    for (int64_t i = 0; i < d; i++) out[i] = get(x[i]);
}

/* out (rows, d) = weight x / sqrt(mean(x^2) + epsilon); inverse (rows) is kept for the gradient. */
void apr_norm(int64_t rows, int64_t d, float epsilon, const float *x, const float *weight, float *inverse,
              real *out) {
    for (int64_t row = 0; row < rows; row++, x += d, out += d) {
        float factor = inverse[row] = 1.0f / sqrtf(dot(x, x, d) / d + epsilon);
        for (int64_t i = 0; i < d; i++) out[i] = put(weight[i] * (x[i] * factor));
    }
}

/* From the gradient of weight x factor, where factor = 1 / rms(x), to the slope of that of x, which is
 * factor (grad weight - slope x). */
INLINE float norm_slope(int64_t d, const float *x, const float *weight, float factor, const float *grad) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < d; i++) sum += grad[i] * weight[i] * x[i];
    return sum * factor * factor / d;
}

/* The gradient of apr_norm: from that of its output, grad, to that of x, which is added to total (rows, d). */
void apr_norm_backward(int64_t rows, int64_t d, const float *x, const float *weight, const float *inverse,
                       const real *grad, float *restrict total, float *restrict weight_grad) {
    float own[d];
    for (int64_t row = 0; row < rows; row++, x += d, grad += d, total += d) {
        float factor = inverse[row];
        get_all(d, grad, own);
        float slope = norm_slope(d, x, weight, factor, own);
        for (int64_t i = 0; i < d; i++) {
            total[i] += factor * (own[i] * weight[i] - x[i] * slope);
            weight_grad[i] += own[i] * x[i] * factor;
        }
    }
}

/* out (rows, d) = silu(gate) up, from x (rows, 2 d): gate, then up. */
void apr_swiglu(int64_t rows, int64_t d, const real *x, real *out) {
    for (int64_t row = 0; row < rows; row++, x += 2 * d, out += d)
        for (int64_t i = 0; i < d; i++) {
            float gate = get(x[i]);
            out[i] = put(gate / (1.0f + exponential(-gate)) * get(x[d + i]));
        }
}

/* From the gradient of apr_swiglu's output, grad (rows, d), to that of x, out (rows, 2 d). */
void apr_swiglu_backward(int64_t rows, int64_t d, const real *x, const real *grad, real *out) {
    for (int64_t row = 0; row < rows; row++, x += 2 * d, grad += d, out += 2 * d)
        for (int64_t i = 0; i < d; i++) {
            float gate = get(x[i]), own = get(grad[i]), sigmoid = 1.0f / (1.0f + exponential(-gate));
            out[i] = put(own * get(x[d + i]) * sigmoid * (1.0f + gate * (1.0f - sigmoid)));
            out[d + i] = put(own * gate * sigmoid);
        }
}

/* A head's queries or keys at a position: how they are normed (weight; none: not at all), rotated and scaled. */
typedef struct {
    const float *weight, *cosine, *sine;
    float epsilon, scale;
} Turn;

INLINE Turn at(Turn turn, int64_t offset) {
    turn.cosine += offset;
    turn.sine += offset;
    return turn;
}

/* Writes out (d) from x (d); returns the inverse of x's root mean square. */
INLINE float rotate(Turn turn, int64_t d, const real *x, float *out) {
    float y[d], factor = 1.0f;
    get_all(d, x, y);
    if (turn.weight) {
        factor = 1.0f / sqrtf(dot(y, y, d) / d + turn.epsilon);
        for (int64_t i = 0; i < d; i++) y[i] = turn.weight[i] * (y[i] * factor);
    }
    for (int64_t i = 0, j = d / 2; j < d; i++, j++) {
        out[i] = (y[i] * turn.cosine[i] - y[j] * turn.sine[i]) * turn.scale;
        out[j] = (y[j] * turn.cosine[j] + y[i] * turn.sine[j]) * turn.scale;
    }
    return factor;
}

/* The gradient of `rotate` for x, out (d), from that of its output, grad. */
INLINE void rotate_backward(Turn turn, int64_t d, const real *x, float factor, const float *grad, real *out,
                            float *weight_grad) {
    float own[d], normed[d];
    for (int64_t i = 0, j = d / 2; j < d; i++, j++) {
        own[i] = (grad[i] * turn.cosine[i] + grad[j] * turn.sine[j]) * turn.scale;
        own[j] = (grad[j] * turn.cosine[j] - grad[i] * turn.sine[i]) * turn.scale;
    }
    if (turn.weight) {
        get_all(d, x, normed);
        float slope = norm_slope(d, normed, turn.weight, factor, own);
        for (int64_t i = 0; i < d; i++) {
            weight_grad[i] += own[i] * normed[i] * factor;
            own[i] = factor * (own[i] * turn.weight[i] - normed[i] * slope);
        }
    }
    for (int64_t i = 0; i < d; i++) out[i] = put(own[i]);
}

INLINE vector load(const float *x) { return *(const vector *)x; }
INLINE void store(float *x, vector y) { *(vector *)x = y; }

/* scores (ROWS, n) = q (ROWS, d) keys (d, n), up to column `end`, a multiple of LANES. */
INLINE void multiply_scores(int64_t end, int64_t d, int64_t n, const float *q, const float *keys,
                            float *scores) {
    for (int64_t t = 0; t < end; t += LANES) {
        vector sums[ROWS] = {};
        for (int64_t i = 0; i < d; i++) {
            vector key = load(keys + i * n + t);
            for (int64_t r = 0; r < ROWS; r++) sums[r] += q[r * d + i] * key;
        }
        for (int64_t r = 0; r < ROWS; r++) store(scores + r * n + t, sums[r]);
    }
}

/* `count` vectors of each row of `multiply`. */
INLINE void multiply_part(int64_t count, int64_t first, int64_t end, int64_t d, int64_t along, int64_t across,
                          const float *weights, const float *x, float *out) {
    vector sums[ROWS][2] = {};
    for (int64_t t = first; t < end; t++)
        for (int64_t i = 0; i < count; i++) {
            vector value = load(x + t * d + i * LANES);
            for (int64_t r = 0; r < ROWS; r++) sums[r][i] += weights[r * along + t * across] * value;
        }
    for (int64_t r = 0; r < ROWS; r++)
        for (int64_t i = 0; i < count; i++) {
            float *to = out + r * d + i * LANES;
            store(to, load(to) + sums[r][i]);
        }
}

/* out (ROWS, d) += weights x (from row `first` to `end`, d), where the weight of row r for t is
 * weights[r * along + t * across]. */
INLINE void multiply(int64_t first, int64_t end, int64_t d, int64_t along, int64_t across, const float *weights,
                     const float *x, float *out) {
    int64_t i = 0;
    for (; i + 2 * LANES <= d; i += 2 * LANES)
        multiply_part(2, first, end, d, along, across, weights, x + i, out + i);
    if (i < d) multiply_part(1, first, end, d, along, across, weights, x + i, out + i);
}

/* The sizes of a pass: `starts` (threads + 1) are the rows at which threads begin, `most` is the longest thread;
 * cosine, sine (rows, d) are the angles of the rows' positions. d is a multiple of LANES. */
typedef struct {
    int64_t threads, most, heads, groups, d;
    float epsilon, scale;
    const int64_t *starts;
    const float *cosine, *sine, *query_weight, *key_weight;
} Attention;

/* `count` rounded up to vectors. */
INLINE int64_t whole(int64_t count) { return (count + LANES - 1) / LANES * LANES; }

/* Columns of scratch for a thread: a multiple of LANES, and no power of two, whose rows share a cache's lines. */
INLINE int64_t columns(int64_t most) { return whole(most) + LANES; }

INLINE int64_t least(int64_t x, int64_t y) { return x < y ? x : y; }

/* A thread of a pass. */
typedef struct {
    int64_t length, n, width, share;
    const real *rows;
    Turn query, key;
} Thread;

INLINE Thread thread_of(const Attention *a, int64_t d, const real *projected, int64_t thread) {
    int64_t start = a->starts[thread], width = (a->heads + 2 * a->groups) * d;
    const float *cosine = a->cosine + start * d, *sine = a->sine + start * d;
    return (Thread){
        .length = a->starts[thread + 1] - start, .n = columns(a->most), .width = width,
        .share = a->heads / a->groups, .rows = projected + start * width,
        .query = {a->query_weight, cosine, sine, a->epsilon, a->scale},
        .key = {a->key_weight, cosine, sine, a->epsilon, 1.0f},
    };
}

/* Of a head or group that begins at column `head`: rotated x (length, d), and factors of its norms (length). */
INLINE void rotate_all(Thread t, Turn turn, int64_t d, int64_t head, float *out, float *factors) {
    for (int64_t row = 0; row < t.length; row++)
        factors[row] = rotate(at(turn, row * d), d, t.rows + row * t.width + head * d, out + row * d);
    memset(out + t.length * d, 0, ROWS * d * sizeof(float)); /* which ROWS at the end read, and nobody uses */
}

INLINE void copy_all(int64_t length, int64_t width, int64_t d, const real *x, float *out) {
    for (int64_t row = 0; row < length; row++) get_all(d, x + row * width, out + row * d);
    memset(out + length * d, 0, ROWS * d * sizeof(float));
}

/* x (length, d) as (d, n), zero beyond length as far as vectors are read. */
INLINE void transpose(int64_t length, int64_t d, int64_t n, const float *x, float *out) {
    for (int64_t i = 0; i < d; i++) {
        for (int64_t t = 0; t < length; t++) out[i * n + t] = x[t * d + i];
        for (int64_t t = length; t < whole(length); t++) out[i * n + t] = 0.0f;
    }
}

/* scores (end) of position `last`, which is in the last vector of them, become weights of what is up to it,
 * zero after it, so far without the factor that is returned. Writes up to a vector beyond `end`. */
INLINE float softmax(float *scores, int64_t last, int64_t end) {
    float most = -INFINITY, total = 0.0f;
    end &= -LANES; /* as it is; now the compiler knows that no part of a vector is left */
    store(scores + last + 1, most + (vector){});
#pragma omp simd reduction(max : most)
    for (int64_t t = 0; t < end; t++) most = scores[t] > most ? scores[t] : most;
#pragma omp simd reduction(+ : total)
    for (int64_t t = 0; t < end; t++) {
        scores[t] = exponential(scores[t] - most);
        total += scores[t];
    }
    store(scores + last + 1, (vector){});
    return 1.0f / total;
}

#define SCRATCH(name, count) float *name = buffer; buffer += (count)

INLINE void attend(const Attention *a, int64_t d, const real *projected, float *buffer, real *out) {
    int64_t n = columns(a->most), size = (n + ROWS) * d;
    SCRATCH(keys, size); SCRATCH(values, size); SCRATCH(queries, size); SCRATCH(turned, n * d);
    SCRATCH(factors, n); SCRATCH(scores, ROWS * n);
    for (int64_t thread = 0; thread < a->threads; thread++) {
        Thread t = thread_of(a, d, projected, thread);
        for (int64_t group = 0; group < a->groups; group++) {
            rotate_all(t, t.key, d, a->heads + group, keys, factors);
            transpose(t.length, d, n, keys, turned);
            copy_all(t.length, t.width, d, t.rows + (a->heads + a->groups + group) * d, values);
            for (int64_t head = group * t.share; head < (group + 1) * t.share; head++) {
                rotate_all(t, t.query, d, head, queries, factors);
                for (int64_t first = 0; first < t.length; first += ROWS) {
                    int64_t rows = least(ROWS, t.length - first), end = first + rows, block = whole(end);
                    float result[ROWS * d], scale[ROWS];
                    memset(result, 0, sizeof result);
                    multiply_scores(block, d, n, queries + first * d, turned, scores);
                    for (int64_t r = 0; r < rows; r++) scale[r] = softmax(scores + r * n, first + r, block);
                    multiply(0, end, d, n, 1, scores, values, result);
                    for (int64_t r = 0; r < rows; r++) {
                        real *to = out + ((a->starts[thread] + first + r) * a->heads + head) * d;
                        for (int64_t i = 0; i < d; i++) to[i] = put(result[r * d + i] * scale[r]);
                    }
                }
            }
        }
    }
}

INLINE void attend_backward(const Attention *a, int64_t d, const real *projected, const real *out,
                            const real *grad, float *buffer, real *projected_grad, float *query_weight_grad,
                            float *key_weight_grad) {
    int64_t n = columns(a->most), size = (n + ROWS) * d;
    SCRATCH(keys, size); SCRATCH(values, size); SCRATCH(queries, size); SCRATCH(grads, size);
    SCRATCH(outputs, size); SCRATCH(turned_keys, n * d); SCRATCH(turned_values, n * d);
    SCRATCH(factors, n); SCRATCH(query_factors, n); SCRATCH(key_grads, size); SCRATCH(value_grads, size);
    SCRATCH(weights, (n + ROWS) * n); SCRATCH(slopes, (n + ROWS) * n);
    for (int64_t thread = 0; thread < a->threads; thread++) {
        Thread t = thread_of(a, d, projected, thread);
        int64_t length = t.length, start = a->starts[thread];
        real *row_grads = projected_grad + start * t.width;
        for (int64_t group = 0; group < a->groups; group++) {
            rotate_all(t, t.key, d, a->heads + group, keys, factors);
            transpose(length, d, n, keys, turned_keys);
            copy_all(length, t.width, d, t.rows + (a->heads + a->groups + group) * d, values);
            transpose(length, d, n, values, turned_values);
            memset(key_grads, 0, size * sizeof(float));
            memset(value_grads, 0, size * sizeof(float));
            for (int64_t head = group * t.share; head < (group + 1) * t.share; head++) {
                int64_t own = (start * a->heads + head) * d;
                rotate_all(t, t.query, d, head, queries, query_factors);
                copy_all(length, a->heads * d, d, grad + own, grads);
                copy_all(length, a->heads * d, d, out + own, outputs);
                for (int64_t first = 0; first < length; first += ROWS) {
                    int64_t rows = least(ROWS, length - first), end = first + rows, block = whole(end);
                    float *w = weights + first * n, *s = slopes + first * n, result[ROWS * d];
                    memset(result, 0, sizeof result);
                    multiply_scores(block, d, n, queries + first * d, turned_keys, w);
                    multiply_scores(block, d, n, grads + first * d, turned_values, s);
                    for (int64_t r = 0; r < rows; r++) {
                        float factor = softmax(w + r * n, first + r, block);
                        float mean = dot(grads + (first + r) * d, outputs + (first + r) * d, d);
                        for (int64_t k = 0; k < block; k++) {
                            w[r * n + k] *= factor;
                            s[r * n + k] = w[r * n + k] * (s[r * n + k] - mean);
                        }
                    }
                    multiply(0, end, d, n, 1, s, keys, result);
                    for (int64_t r = 0; r < rows; r++) {
                        int64_t place = (first + r) * t.width + head * d;
                        rotate_backward(at(t.query, (first + r) * d), d, t.rows + place,
                                        query_factors[first + r], result + r * d, row_grads + place,
                                        query_weight_grad);
                    }
                }
                for (int64_t first = 0; first < length; first += ROWS) {
                    multiply(first, length, d, 1, n, slopes + first, queries, key_grads + first * d);
                    multiply(first, length, d, 1, n, weights + first, grads, value_grads + first * d);
                }
            }
            for (int64_t row = 0; row < length; row++) {
                int64_t place = row * t.width + (a->heads + group) * d;
                real *value_grad = row_grads + place + a->groups * d;
                rotate_backward(at(t.key, row * d), d, t.rows + place, factors[row], key_grads + row * d,
                                row_grads + place, key_weight_grad);
                for (int64_t i = 0; i < d; i++) value_grad[i] = put(value_grads[row * d + i]);
            }
        }
    }
}

/* A constant d keeps a head's sums in registers. */
#define BY_SIZE(CALL)                                                                                         \
    switch (a->d) {                                                                                           \
    case 16: CALL(16); break;                                                                                 \
    case 32: CALL(32); break;                                                                                 \
    case 64: CALL(64); break;                                                                                 \
    default: CALL(a->d);                                                                                      \
    }

static float *scratch(const Attention *a) {
    int64_t n = columns(a->most) + ROWS;
    return malloc((9 * n * a->d + 2 * n + 2 * n * n) * sizeof(float));
}

/* out (rows, heads, d): each token attends to its own thread so far. projected (rows, heads + 2 groups, d) are
 * queries, keys, values before norms and rotation. */
void apr_attend(const Attention *a, const real *projected, real *out) {
    float *buffer = scratch(a);
#define FORWARD(D) attend(a, D, projected, buffer, out)
    BY_SIZE(FORWARD)
    free(buffer);
}

/* From the gradient of apr_attend's output to that of projected and of the norms' weights. */
void apr_attend_backward(const Attention *a, const real *projected, const real *out, const real *grad,
                         real *projected_grad, float *query_weight_grad, float *key_weight_grad) {
    float *buffer = scratch(a);
#define BACKWARD(D)                                                                                           \
    attend_backward(a, D, projected, out, grad, buffer, projected_grad, query_weight_grad, key_weight_grad)
    BY_SIZE(BACKWARD)
    free(buffer);
}
