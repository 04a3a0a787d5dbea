/* Decoding steps of a Llama, Qwen2 or Qwen3 in float32 on a CPU: forward passes over ragged batches of threads, and
 * the tokens that are drawn from their logits, step after step.
 *
 * A row is one token of a thread, which holds a slot: its tokens, keys and values. A token reads the cache of its own
 * thread as far as it goes and no further. Everything is row-major. What is computed for a row is the same to the bit
 * whatever other rows there are, as long as every sum has one order: sums are vectors and never left to the compiler.
 */
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../core/exponential.h"

#define INLINE static inline __attribute__((always_inline))
#define LANES 16
#define PANEL (2 * LANES)
#define PANELS 4
#ifdef __AVX512F__
#define BLOCK 8
#else
#define BLOCK 3
#endif
typedef float vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

INLINE vector load(const float *x) { return *(const vector *)x; }
INLINE void store(float *x, vector y) { *(vector *)x = y; }
INLINE int64_t least(int64_t x, int64_t y) { return x < y ? x : y; }
INLINE int64_t most(int64_t x, int64_t y) { return x < y ? y : x; }

/* By halves, as in a tree. */
INLINE float sum(vector x) {
    typedef int32_t lanes __attribute__((vector_size(4 * LANES)));
    x += __builtin_shuffle(x, (lanes){8, 9, 10, 11, 12, 13, 14, 15});
    x += __builtin_shuffle(x, (lanes){4, 5, 6, 7});
    x += __builtin_shuffle(x, (lanes){2, 3});
    return x[0] + x[1];
}

/* Matrices are packed as panels of PANEL columns, each (inputs, PANEL), the last filled up with zeros. */
typedef struct {
    int64_t inputs, outputs;
    const float *panels;
} Matrix;

/* panels of weight (outputs, inputs), as torch has it. */
void apr_pack(int64_t outputs, int64_t inputs, const float *weight, float *panels) {
    for (int64_t first = 0; first < outputs; first += PANEL)
        for (int64_t k = 0; k < inputs; k++)
            for (int64_t j = 0; j < PANEL; j++)
                *panels++ = first + j < outputs ? weight[(first + j) * inputs + k] : 0.0f;
}

/* The panels that a tile of so many rows has, so that its sums fill the registers but do not wait for each other. */
INLINE int64_t panels_of(int64_t rows) { return least(PANELS, BLOCK / rows); }

/* out (rows, outputs), from `column` on as many as `panels` have, = x (rows, inputs) m, or added to it. Rows and
 * panels are constants; every sum goes through the inputs in their order. */
INLINE void multiply_tile(int64_t rows, int64_t panels, const Matrix *m, int64_t column, const float *x, int add,
                          float *out) {
    vector sums[BLOCK][PANELS][2] = {};
    const float *panel = m->panels + column * m->inputs;
    for (int64_t k = 0; k < m->inputs; k++)
#pragma GCC unroll 8
        for (int64_t p = 0; p < panels; p++) {
            const float *weights = panel + (p * m->inputs + k) * PANEL;
            vector low = load(weights), high = load(weights + LANES);
#pragma GCC unroll 8
            for (int64_t r = 0; r < rows; r++) {
                sums[r][p][0] += x[r * m->inputs + k] * low;
                sums[r][p][1] += x[r * m->inputs + k] * high;
            }
        }
#pragma GCC unroll 8
    for (int64_t r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int64_t p = 0; p < panels; p++) {
            int64_t first = column + p * PANEL, width = least(PANEL, m->outputs - first);
            float line[PANEL], *to = out + r * m->outputs + first;
            store(line, sums[r][p][0]);
            store(line + LANES, sums[r][p][1]);
            for (int64_t j = 0; j < width; j++) to[j] = (add ? to[j] : 0.0f) + line[j];
        }
}

/* The same for up to BLOCK rows, and 1 panel or `panels_of` them. */
static void multiply_block(int64_t rows, int64_t panels, const Matrix *m, int64_t column, const float *x, int add,
                           float *out) {
#define TILE(R)                                                              \
    case R:                                                                  \
        if (panels == 1) multiply_tile(R, 1, m, column, x, add, out);        \
        else multiply_tile(R, panels_of(R), m, column, x, add, out);         \
        break;
    switch (rows) {
        TILE(1) TILE(2) TILE(3)
#if BLOCK == 8
        TILE(4) TILE(5) TILE(6) TILE(7) TILE(8)
#endif
    }
}

/* out (rows, outputs) = x (rows, inputs) m, or added to it. */
static void multiply(int64_t rows, const Matrix *m, const float *x, int add, float *out) {
    int64_t all = (m->outputs + PANEL - 1) / PANEL, many = panels_of(least(rows, BLOCK));
    for (int64_t panel = 0, panels; panel < all; panel += panels) {
        panels = panel + many <= all ? many : 1;
        for (int64_t row = 0; row < rows; row += BLOCK)
            multiply_block(least(BLOCK, rows - row), panels, m, panel * PANEL, x + row * m->inputs, add,
                           out + row * m->outputs);
    }
}

/* out (d) = weight x / sqrt(mean(x^2) + epsilon). */
INLINE void norm(const float *x, const float *weight, float epsilon, int64_t d, float *out) {
    vector squares = {};
    int64_t i = 0;
    for (; i + LANES <= d; i += LANES) squares += load(x + i) * load(x + i);
    float total = sum(squares);
    for (; i < d; i++) total += x[i] * x[i];
    float factor = 1.0f / sqrtf(total / d + epsilon);
    for (i = 0; i < d; i++) out[i] = weight[i] * (x[i] * factor);
}

typedef struct {
    const float *norm, *mlp_norm, *query_norm, *key_norm, *bias; /* of the last three there may be none */
    Matrix projection, output, gate_up, down;
    float *keys, *values; /* (slots, groups, panels, d, PANEL) and (slots, groups, positions, d), and PANEL more */
} Layer;

typedef struct {
    int64_t layers, hidden, heads, groups, d, inner, vocabulary, window;
    float epsilon, scale;
    const float *embedding, *norm, *cosine, *sine; /* angles (window, d) */
    Matrix head;
    const Layer *layer;
} Model;

/* The positions of a slot: as many panels of them as hold a window. */
INLINE int64_t positions_of(const Model *m) { return (m->window + PANEL - 1) / PANEL * PANEL; }

/* One head of d numbers: normed by weight, if there is one, rotated by the angles of its position, times scale. */
INLINE void rotate(const Model *m, const float *x, const float *weight, int64_t position, float scale, int64_t d,
                   float *out) {
    const float *cosine = m->cosine + position * d, *sine = m->sine + position * d;
    float normed[d];
    if (weight) {
        norm(x, weight, m->epsilon, d, normed);
        x = normed;
    }
    for (int64_t i = 0, j = d / 2; j < d; i++, j++) {
        out[i] = (x[i] * cosine[i] - x[j] * sine[i]) * scale;
        out[j] = (x[j] * cosine[j] + x[i] * sine[j]) * scale;
    }
}

/* out (PANEL) = q . keys for a panel of positions, or for two of them, whose sums do not wait for each other. */
INLINE void score(int64_t panels, const float *q, const float *keys, int64_t d, float *out) {
    vector sums[2][2] = {};
    for (int64_t i = 0; i < d; i++)
        for (int64_t p = 0; p < panels; p++)
            for (int64_t half = 0; half < 2; half++)
                sums[p][half] += q[i] * load(keys + (p * d + i) * PANEL + half * LANES);
    for (int64_t p = 0; p < panels; p++)
        for (int64_t half = 0; half < 2; half++) store(out + p * PANEL + half * LANES, sums[p][half]);
}

/* out (LANES each) = weights (n) values (n, d) / total, for some vectors of a value. */
INLINE void average(int64_t vectors, const float *weights, const float *values, int64_t n, int64_t d, float total,
                    float *out) {
    vector sums[2][4] = {};
    int64_t t = 0;
    for (; t + 4 <= n; t += 4)
#pragma GCC unroll 4
        for (int64_t u = 0; u < 4; u++)
            for (int64_t v = 0; v < vectors; v++)
                sums[v][u] += weights[t + u] * load(values + (t + u) * d + v * LANES);
    for (; t < n; t++)
        for (int64_t v = 0; v < vectors; v++) sums[v][0] += weights[t] * load(values + t * d + v * LANES);
    for (int64_t v = 0; v < vectors; v++)
        store(out + v * LANES, ((sums[v][0] + sums[v][1]) + (sums[v][2] + sums[v][3])) / total);
}

/* out (d) = softmax(q . keys) values over n positions; weights is scratch (window + PANEL). Reads and writes whole
 * vectors: of values up to LANES beyond theirs, of out too, where what follows is written later. */
INLINE void attend_head(const float *q, const float *keys, const float *values, int64_t n, int64_t d, float *weights,
                        float *out) {
    int64_t t = 0;
    for (; t + PANEL < n; t += 2 * PANEL) score(2, q, keys + t * d, d, weights + t);
    if (t < n) score(1, q, keys + t * d, d, weights + t);
    int64_t whole = (n + LANES - 1) / LANES * LANES;
    float largest = -INFINITY;
    for (t = n; t < whole; t++) weights[t] = -INFINITY;
#pragma omp simd reduction(max : largest)
    for (t = 0; t < whole; t++) largest = weights[t] > largest ? weights[t] : largest;
    for (t = 0; t < whole; t++) weights[t] = exponential(weights[t] - largest);
    for (t = n; t < whole; t++) weights[t] = 0.0f;
    vector totals = {};
    for (t = 0; t < n; t += LANES) totals += load(weights + t);
    float total = sum(totals);
    int64_t i = 0;
    for (; i + 2 * LANES <= d; i += 2 * LANES) average(2, weights, values + i, n, d, total, out + i);
    for (; i < d; i += LANES) average(1, weights, values + i, n, d, total, out + i);
}

/* The rows of a pass. */
typedef struct {
    int64_t count, *tokens, *slots, *positions;
} Rows;

/* Writes the keys and values of all rows to their slots, then attends from each row to its thread so far. */
INLINE void attend(const Model *m, const Layer *layer, const Rows *rows, int64_t d, const float *projected,
                   float *out) {
    int64_t width = (m->heads + 2 * m->groups) * d, share = m->heads / m->groups, size = positions_of(m) * d;
    for (int64_t row = 0; row < rows->count; row++) {
        const float *key = projected + row * width + m->heads * d, *value = key + m->groups * d;
        int64_t position = rows->positions[row];
        for (int64_t group = 0; group < m->groups; group++) {
            int64_t at = (rows->slots[row] * m->groups + group) * size;
            float rotated[d];
            rotate(m, key + group * d, layer->key_norm, position, 1.0f, d, rotated);
            float *keys = layer->keys + at + position / PANEL * PANEL * d + position % PANEL;
            for (int64_t i = 0; i < d; i++) keys[i * PANEL] = rotated[i];
            memcpy(layer->values + at + position * d, value + group * d, d * sizeof(float));
        }
    }
    float q[d], weights[m->window + PANEL];
    for (int64_t row = 0; row < rows->count; row++)
        for (int64_t head = 0; head < m->heads; head++) {
            int64_t at = (rows->slots[row] * m->groups + head / share) * size, position = rows->positions[row];
            rotate(m, projected + row * width + head * d, layer->query_norm, position, m->scale, d, q);
            attend_head(q, layer->keys + at, layer->values + at, position + 1, d, weights,
                        out + (row * m->heads + head) * d);
        }
}

/* What a group of threads is decoded in. */
typedef struct {
    Rows rows;
    float *hidden, *normed, *projected, *attended, *gated, *inner; /* of each row */
    float *last, *logits;                                          /* of each thread */
    double *cumulative;
} Scratch;

static void *take(char **memory, int64_t floats) {
    char *taken = *memory;
    *memory += (4 * floats + 63) / 64 * 64;
    return taken;
}

/* Scratch for so many rows and threads, in memory that is to be freed: none if there is too little. */
static char *open_scratch(const Model *m, int64_t rows, int64_t count, Scratch *scratch) {
    int64_t attended = m->heads * m->d, projected = attended + 2 * m->groups * m->d;
    int64_t floats = rows * (2 * m->hidden + attended + projected + 3 * m->inner + 6) +
                     count * (m->hidden + m->vocabulary) + 2 * m->vocabulary + 13 * LANES;
    char *memory = aligned_alloc(64, (4 * floats + 63) / 64 * 64), *at = memory;
    if (!memory) return NULL;
    scratch->rows = (Rows){0, take(&at, 2 * rows), take(&at, 2 * rows), take(&at, 2 * rows)};
    scratch->hidden = take(&at, rows * m->hidden);
    scratch->normed = take(&at, rows * m->hidden);
    scratch->projected = take(&at, rows * projected);
    scratch->attended = take(&at, rows * attended);
    scratch->gated = take(&at, rows * 2 * m->inner);
    scratch->inner = take(&at, rows * m->inner);
    scratch->last = take(&at, count * m->hidden);
    scratch->logits = take(&at, count * m->vocabulary);
    scratch->cumulative = take(&at, 2 * m->vocabulary);
    return memory;
}

/* The hidden states of all rows; their keys and values are in the cache after it. */
static void pass(const Model *m, const Scratch *s) {
    int64_t count = s->rows.count, size = m->hidden, inner = m->inner, width = (m->heads + 2 * m->groups) * m->d;
    for (int64_t row = 0; row < count; row++)
        memcpy(s->hidden + row * size, m->embedding + s->rows.tokens[row] * size, size * sizeof(float));
    for (const Layer *layer = m->layer; layer < m->layer + m->layers; layer++) {
        for (int64_t row = 0; row < count; row++)
            norm(s->hidden + row * size, layer->norm, m->epsilon, size, s->normed + row * size);
        multiply(count, &layer->projection, s->normed, 0, s->projected);
        if (layer->bias)
            for (int64_t row = 0; row < count; row++)
                for (int64_t i = 0; i < width; i++) s->projected[row * width + i] += layer->bias[i];
        switch (m->d) { /* a constant d keeps a head's sums in registers */
        case 16: attend(m, layer, &s->rows, 16, s->projected, s->attended); break;
        case 32: attend(m, layer, &s->rows, 32, s->projected, s->attended); break;
        case 64: attend(m, layer, &s->rows, 64, s->projected, s->attended); break;
        case 128: attend(m, layer, &s->rows, 128, s->projected, s->attended); break;
        default: attend(m, layer, &s->rows, m->d, s->projected, s->attended);
        }
        multiply(count, &layer->output, s->attended, 1, s->hidden);
        for (int64_t row = 0; row < count; row++)
            norm(s->hidden + row * size, layer->mlp_norm, m->epsilon, size, s->normed + row * size);
        multiply(count, &layer->gate_up, s->normed, 0, s->gated);
        for (int64_t row = 0; row < count; row++)
            for (int64_t i = 0; i < inner; i++) {
                float gate = s->gated[row * 2 * inner + i], up = s->gated[row * 2 * inner + inner + i];
                s->inner[row * inner + i] = gate / (1.0f + exponential(-gate)) * up;
            }
        multiply(count, &layer->down, s->inner, 1, s->hidden);
    }
}

/* A number in [0, 1) for a key and a position, by splitmix64 as a counter hash. */
INLINE double uniform(uint64_t key, uint64_t position) {
    uint64_t z = key + (position + 1) * 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    z ^= z >> 31;
    return (z >> 11) * 0x1p-53;
}

/* A token drawn by inverse CDF at `noise`, or the most likely one at temperature 0; its log-probability, at
 * temperature 1 if greedy. cumulative is scratch (size). */
static int64_t draw(int64_t size, const float *logits, double temperature, double noise, double *cumulative,
                    double *logprob) {
    int64_t best = 0;
    for (int64_t i = 1; i < size; i++) best = logits[i] > logits[best] ? i : best;
    double by = temperature == 0 ? 1.0 : temperature, largest = logits[best] / by, total = 0.0;
    for (int64_t i = 0; i < size; i++) cumulative[i] = total += exp(logits[i] / by - largest);
    int64_t token = best;
    if (temperature != 0) {
        double threshold = noise * total;
        for (token = 0; token < size - 1 && cumulative[token] <= threshold; token++) {}
    }
    *logprob = logits[token] / by - largest - log(total);
    return token;
}

/* `Table` of apr/engine/scheduler.py, whose arrays these are. */
typedef struct {
    int64_t *ids;
    double *logprobs;
    int64_t *length, *cached;
    const int64_t *limit;
    const double *temperature;
    const uint64_t *key;
    const uint8_t *stop;
} Table;

enum { ROWS = 512 }; /* tokens of one pass: more of them would not fit a core's cache */
enum { DONE, NOT_FINITE, NO_MEMORY };

/* The most tokens that a thread of them has and its cache lacks, or all of them together. */
INLINE int64_t pending(const Table *table, int64_t count, const int64_t *slots, int together) {
    int64_t found = 0;
    for (int64_t i = 0; i < count; i++) {
        int64_t lacks = table->length[slots[i]] - table->cached[slots[i]];
        found = together ? found + lacks : most(found, lacks);
    }
    return found;
}

/* The logits of what comes next in each of the threads in `slots` (count), in as many passes as it takes. */
static void read_pending(const Model *m, const Table *table, int64_t count, const int64_t *slots, Scratch *s) {
    Rows *rows = &s->rows;
    int64_t size = m->hidden, found = 0;
    rows->count = 0;
    for (int64_t i = 0; i < count; i++) {
        int64_t slot = slots[i], length = table->length[slot];
        for (int64_t at = table->cached[slot]; at < length; at++) {
            rows->tokens[rows->count] = table->ids[slot * m->window + at];
            rows->slots[rows->count] = slot, rows->positions[rows->count++] = at;
            if (rows->count < ROWS && !(at + 1 == length && i + 1 == count)) continue;
            pass(m, s);
            for (int64_t row = 0; row < rows->count; row++)
                if (rows->positions[row] + 1 == table->length[rows->slots[row]])
                    norm(s->hidden + row * size, m->norm, m->epsilon, size, s->last + size * found++);
            rows->count = 0;
        }
    }
    multiply(count, &m->head, s->last, 0, s->logits);
}

/* A token more for each of the threads in `slots` (count) that has not ended, `steps` times, or, if they are `alone`,
 * until one ends. Adds to `seconds` (2) those of steps that read prompts or joined tokens, and of those that only
 * decode. Leaves in `slots` those that go on. */
static int decode_group(const Model *m, const Table *table, int64_t count, int64_t *slots, int64_t steps, int alone,
                        double *seconds) {
    Scratch scratch;
    char *memory = open_scratch(m, least(ROWS, pending(table, count, slots, 1)), count, &scratch);
    if (!memory) return NO_MEMORY;
    int fault = DONE;
    for (int64_t step = 0, left = count; step < steps && left && !fault && (left == count || !alone); step++) {
        count = left, left = 0;
        double started = omp_get_wtime(), *kind = seconds + (pending(table, count, slots, 0) == 1);
        read_pending(m, table, count, slots, &scratch);
        for (int64_t i = 0; i < count; i++) {
            int64_t slot = slots[i], length = table->length[slot], at = slot * m->window + length;
            double logprob, noise = uniform(table->key[slot], length);
            int64_t token = draw(m->vocabulary, scratch.logits + i * m->vocabulary, table->temperature[slot], noise,
                                 scratch.cumulative, &logprob);
            if (!isfinite(logprob)) fault = NOT_FINITE;
            table->ids[at] = token, table->logprobs[at] = logprob;
            table->cached[slot] = length, table->length[slot] = length + 1;
            if (!table->stop[token] && length + 1 < table->limit[slot]) slots[left++] = slot;
        }
        *kind += omp_get_wtime() - started;
    }
    free(memory);
    return fault;
}

/* The threads in `slots` (count), in so many groups; each is decoded by one of the workers, as `decode_group` does. */
int64_t apr_decode(const Model *m, const Table *table, int64_t count, int64_t *slots, int64_t groups, int64_t steps,
                   int64_t workers, double *seconds) {
    int fault = DONE;
    double read = 0.0, decode = 0.0;
#pragma omp parallel for num_threads(workers) if (workers > 1) schedule(dynamic) reduction(max : fault) \
    reduction(+ : read, decode)
    for (int64_t group = 0; group < groups; group++) {
        int64_t first = group * count / groups, after = (group + 1) * count / groups;
        double taken[2] = {0.0, 0.0};
        int told = decode_group(m, table, after - first, slots + first, steps, groups == 1, taken);
        fault = (int)most(fault, told);
        read += taken[0], decode += taken[1];
    }
    seconds[0] = read, seconds[1] = decode;
    return fault;
}
