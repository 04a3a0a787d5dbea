/* What a Llama layer does between its matrix products, for a ragged batch of tokens and a cache of slots.
 *
 * A row is one token: of the thread in slots[row], at positions[row] in it. Everything is row-major float32.
 */
#include <math.h>
#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))

/* e^x to some 2 ulp for |x| <= 87, and no more than that beyond; vectorises, as libm's does not. */
INLINE float exponential(float x) {
    x = x < -87.0f ? -87.0f : x > 87.0f ? 87.0f : x;
    float n = rintf(x * 1.44269504f);
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    union { int32_t bits; float value; } power = {((int32_t)n + 127) << 23};
    return (p * r * r + r + 1.0f) * power.value;
}

/* Rotary embedding of one head of d numbers, times scale. */
INLINE void rotate(const float *x, const float *cosine, const float *sine, float scale, int64_t d, float *out) {
    for (int64_t i = 0; i < d / 2; i++) {
        int64_t j = i + d / 2;
        out[i] = (x[i] * cosine[i] - x[j] * sine[i]) * scale;
        out[j] = (x[j] * cosine[j] + x[i] * sine[j]) * scale;
    }
}

/* out (d) = softmax(q . keys) values over n positions; weights is scratch (n). */
INLINE void attend_head(const float *q, const float *keys, const float *values, int64_t n, int64_t d,
                        float *weights, float *out) {
    float most = -INFINITY, total = 0.0f;
    for (int64_t t = 0; t < n; t++) {
        float score = 0.0f;
#pragma omp simd reduction(+ : score)
        for (int64_t i = 0; i < d; i++) score += q[i] * keys[t * d + i];
        weights[t] = score;
    }
#pragma omp simd reduction(max : most)
    for (int64_t t = 0; t < n; t++) most = weights[t] > most ? weights[t] : most;
#pragma omp simd reduction(+ : total)
    for (int64_t t = 0; t < n; t++) {
        weights[t] = exponential(weights[t] - most);
        total += weights[t];
    }
    for (int64_t i = 0; i < d; i++) out[i] = 0.0f;
    for (int64_t t = 0; t < n; t++)
        for (int64_t i = 0; i < d; i++) out[i] += weights[t] * values[t * d + i];
    for (int64_t i = 0; i < d; i++) out[i] /= total;
}

INLINE void attend_row(const float *projected, const float *cosine, const float *sine, int64_t heads,
                       int64_t groups, int64_t d, int64_t window, float scale, int64_t slot, int64_t position,
                       const float *keys, const float *values, float *out) {
    float q[d], result[d], weights[position + 1];
    for (int64_t head = 0; head < heads; head++) {
        int64_t at = (slot * groups + head / (heads / groups)) * window * d;
        rotate(projected + head * d, cosine + position * d, sine + position * d, scale, d, q);
        attend_head(q, keys + at, values + at, position + 1, d, weights, result);
        for (int64_t i = 0; i < d; i++) out[head * d + i] = result[i];
    }
}

/* Writes the keys and values of all rows to their slots, then attends from each row to its thread so far.
 *
 * projected (rows, heads + 2 groups, d): queries, keys, values, before rotation; cosine, sine (window, d);
 * keys, values (slots, groups, window, d); out (rows, heads, d).
 */
void apr_attend(int64_t rows, int64_t heads, int64_t groups, int64_t d, int64_t window, float scale,
                int64_t threads, const float *projected, const float *cosine, const float *sine,
                const int64_t *slots, const int64_t *positions, float *keys, float *values, float *out) {
    int64_t width = (heads + 2 * groups) * d;
    for (int64_t row = 0; row < rows; row++) {
        const float *key = projected + row * width + heads * d, *value = key + groups * d;
        int64_t position = positions[row];
        for (int64_t group = 0; group < groups; group++) {
            int64_t at = ((slots[row] * groups + group) * window + position) * d;
            rotate(key + group * d, cosine + position * d, sine + position * d, 1.0f, d, keys + at);
            for (int64_t i = 0; i < d; i++) values[at + i] = value[group * d + i];
        }
    }
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(dynamic, 4)
    for (int64_t row = 0; row < rows; row++) {
#define ROW(D)                                                                                             \
    attend_row(projected + row * width, cosine, sine, heads, groups, D, window, scale, slots[row],         \
               positions[row], keys, values, out + row * heads * d)
        switch (d) { /* a constant d keeps a head's sums in registers */
        case 16: ROW(16); break;
        case 32: ROW(32); break;
        case 64: ROW(64); break;
        case 128: ROW(128); break;
        default: ROW(d);
        }
    }
}

/* out (rows, d) = weight x / sqrt(mean(x^2) + epsilon). */
void apr_rms_norm(int64_t rows, int64_t d, float epsilon, const float *x, const float *weight, float *out) {
    for (int64_t row = 0; row < rows; row++, x += d, out += d) {
        float total = 0.0f;
#pragma omp simd reduction(+ : total)
        for (int64_t i = 0; i < d; i++) total += x[i] * x[i];
        float factor = 1.0f / sqrtf(total / d + epsilon);
        for (int64_t i = 0; i < d; i++) out[i] = weight[i] * (x[i] * factor);
    }
}

/* out (rows, d) = silu(gate) up, from x (rows, 2 d): gate, then up. */
void apr_silu_multiply(int64_t rows, int64_t d, const float *x, float *out) {
    for (int64_t row = 0; row < rows; row++, x += 2 * d, out += d)
        for (int64_t i = 0; i < d; i++) out[i] = x[i] / (1.0f + exponential(-x[i])) * x[d + i];
}
