/* The traces of many problems: what search.py and traces.py do, by the same random draws.
 *
 * They are the reference and say why; the names here are theirs. What this cannot do is left to them: problems
 * whose values may leave 64 bits, numbers that the vocabulary's table lacks, what finds no memory.
 */
#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_NUMBERS = 8, MOST_SUCCESSORS = 4 * MOST_NUMBERS * (MOST_NUMBERS - 1) / 2, MOST_FACTORS = 2048,
       MOST_TARGET = 1000000000 /* no number up to it has more than 1,344 factors */ };
enum { SOS, SOS_PLUS, APR };
enum { ROOT, CHILD, GO, TOKENS, CHILDREN, LIST, GOTO, SPAWN, RUN, JOINED, RESUME, JOIN, ANSWER, NONE, COMMA,
       END, PLUS, MINUS, TIMES, OVER, EQUALS, BELOW, HIT, ABOVE, DIGIT };

typedef struct {
    int64_t solver, beam_low, beam_high, child_beam, spawn_depth, candidates, only_solved, multiply;
    int64_t max_value, window, token_step, max_children, depths, messages, tabled;
    double promising, child_promising, condition_share, cut_share;
    const int32_t *words; /* as in the enum, then the ten digits; -1 if large numbers are written otherwise */
    const int32_t *depth_ids, *message_ids;
    const int32_t *number_ids; /* of each number below `tabled`, from number_starts[n] on */
    const int64_t *number_starts;
} Settings;

typedef struct { char *data; int64_t size, capacity; } Vector; /* in elements */
typedef struct { Vector ids, ends; } Text;                     /* tokens, and where each event ends */
typedef struct { int64_t ids, ends, solved; } Mark;            /* where a child's thread ends in `children` */
typedef struct { Text root, children; Vector marks; int64_t solved; } Trace;
typedef struct { int64_t left, right, result, op; } Operation;
typedef struct { Operation by; int64_t parent, depth, count, state[MOST_NUMBERS]; } Node;
typedef struct { int64_t found, node; Operation last; } Path;
typedef struct { int64_t rank, order, node; } Queued;
typedef struct { uint32_t words[624]; int at; } Random;
typedef struct { int64_t problem, thread, parent, length, solved, children, amount; } Row;
typedef struct { Vector ids, mask, rows; } Output; /* int32, bytes, Row: of all threads, one after another */

typedef struct {
    const Settings *s;
    Random random;
    int64_t target, factors[MOST_FACTORS], factor_count;
    Vector nodes; /* of one search: the successors of a node are next to one another */
    Vector queues[2]; /* the root's and a child's */
    Trace *trace, traces[2];
    Text framing; /* the prompt as it is asked, and the end of a search that gives up */
    jmp_buf leave;
} Work;

typedef struct { Text *text; Vector *queue; int64_t beam, best_first, spawn_depth; double promising; } Search;

/* Room for `count` more elements at the end. */
static void *extend(Work *w, Vector *v, int64_t count, int64_t bytes) {
    if (v->size + count > v->capacity) {
        int64_t capacity = 2 * (v->size + count) + 64;
        char *data = realloc(v->data, capacity * bytes);
        if (data == NULL) longjmp(w->leave, 1);
        v->data = data;
        v->capacity = capacity;
    }
    v->size += count;
    return v->data + (v->size - count) * bytes;
}

/* Python's random.Random: MT19937 seeded by an array, `random()` and `_randbelow()`. */
static void seed_random(Random *r, uint64_t seed) {
    uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)}, *x = r->words;
    int keys = key[1] ? 2 : 1, i = 1, j = 0;
    x[0] = 19650218u;
    for (int k = 1; k < 624; k++) x[k] = 1812433253u * (x[k - 1] ^ (x[k - 1] >> 30)) + k;
    for (int k = 0; k < 624; k++) {
        x[i] = (x[i] ^ ((x[i - 1] ^ (x[i - 1] >> 30)) * 1664525u)) + key[j] + j;
        j = (j + 1) % keys;
        if (++i == 624) x[0] = x[623], i = 1;
    }
    for (int k = 0; k < 623; k++) {
        x[i] = (x[i] ^ ((x[i - 1] ^ (x[i - 1] >> 30)) * 1566083941u)) - i;
        if (++i == 624) x[0] = x[623], i = 1;
    }
    x[0] = 0x80000000u;
    r->at = 624;
}

static uint32_t random_bits(Random *r) {
    uint32_t *x = r->words, y;
    if (r->at == 624) {
        for (int k = 0; k < 624; k++) {
            y = (x[k] & 0x80000000u) | (x[(k + 1) % 624] & 0x7fffffffu);
            x[k] = x[(k + 397) % 624] ^ (y >> 1) ^ (y & 1 ? 0x9908b0dfu : 0);
        }
        r->at = 0;
    }
    y = x[r->at++];
    y ^= y >> 11;
    y ^= (y << 7) & 0x9d2c5680u;
    y ^= (y << 15) & 0xefc60000u;
    return y ^ (y >> 18);
}

static double uniform(Random *r) {
    uint32_t high = random_bits(r) >> 5, low = random_bits(r) >> 6;
    return (high * 67108864.0 + low) * (1.0 / 9007199254740992.0);
}

static int64_t below(Random *r, int64_t n) {
    uint32_t found;
    do found = random_bits(r) >> __builtin_clz((uint32_t)n);
    while (found >= n);
    return found;
}

static void write_id(Work *w, Text *text, int32_t id) {
    *(int32_t *)extend(w, &text->ids, 1, sizeof id) = id;
}

static void write_word(Work *w, Text *text, int word) { write_id(w, text, w->s->words[word]); }

static void write_number(Work *w, Text *text, int64_t value) {
    const Settings *s = w->s;
    if (value < s->tabled) {
        for (int64_t i = s->number_starts[value]; i < s->number_starts[value + 1]; i++)
            write_id(w, text, s->number_ids[i]);
        return;
    }
    if (s->words[DIGIT] < 0) longjmp(w->leave, 1);
    write_number(w, text, value / 10); /* the table holds every number that is one token */
    write_word(w, text, DIGIT + value % 10);
}

static void write_operation(Work *w, Text *text, const Operation *o) {
    write_number(w, text, o->left);
    write_word(w, text, o->op);
    write_number(w, text, o->right);
    write_word(w, text, EQUALS);
    write_number(w, text, o->result);
}

static const Node *node_at(const Work *w, int64_t at) { return (const Node *)w->nodes.data + at; }

static void write_line(Work *w, Text *text, int64_t at) {
    const Node *node = node_at(w, at);
    if (node->depth >= w->s->depths) longjmp(w->leave, 1);
    write_id(w, text, w->s->depth_ids[node->depth]);
    write_operation(w, text, &node->by);
    for (int64_t i = 0; i + 1 < node->count; i++) write_number(w, text, node->state[i]);
}

static void write_lines(Work *w, Text *text, int64_t at) {
    if (node_at(w, at)->depth == 0) return;
    write_lines(w, text, node_at(w, at)->parent);
    write_line(w, text, at);
}

static void write_operations(Work *w, Text *text, int64_t at) {
    if (node_at(w, at)->depth == 0) return;
    write_operations(w, text, node_at(w, at)->parent);
    write_operation(w, text, &node_at(w, at)->by);
    write_word(w, text, COMMA);
}

static void write_path(Work *w, Text *text, int first, const Path *path) {
    write_word(w, text, first);
    if (!path->found) { write_word(w, text, NONE); return; }
    write_operations(w, text, path->node);
    write_operation(w, text, &path->last);
}

static void end_event(Work *w, Text *text) {
    *(int64_t *)extend(w, &text->ends, 1, sizeof(int64_t)) = text->ids.size;
}

static int64_t legal_operations(const Work *w, int64_t x, int64_t y, Operation *found) {
    int64_t high = x > y ? x : y, low = x > y ? y : x, count = 0, bound = w->s->max_value;
    if (high + low <= bound) found[count++] = (Operation){high, low, high + low, PLUS};
    if (high - low <= bound) found[count++] = (Operation){high, low, high - low, MINUS};
    if (high * low <= bound) found[count++] = (Operation){high, low, high * low, TIMES};
    if (low > 0 && high % low == 0 && high / low <= bound)
        found[count++] = (Operation){high, low, high / low, OVER};
    return count;
}

static int64_t factor_distance(const Work *w, int64_t number) {
    int64_t least = llabs(number - w->target);
    for (int64_t i = 0; i < w->factor_count; i++) {
        int64_t distance = llabs(number - w->factors[i]);
        if (distance < least) least = distance;
    }
    return least;
}

static int64_t heuristic(const Work *w, const Node *node) {
    int64_t sum = 0;
    for (int64_t i = w->s->multiply ? 0 : node->count - 1; i < node->count; i++)
        sum += factor_distance(w, node->state[i]);
    return sum;
}

/* Appends the successors of a node to `nodes`; their number. */
static int64_t expand(Work *w, int64_t at, int64_t beam) {
    const Node from = *node_at(w, at);
    int64_t sorted[MOST_SUCCESSORS][MOST_NUMBERS], rank[MOST_SUCCESSORS];
    int64_t found = 0, kept = 0, first = w->nodes.size;
    Node *nodes = extend(w, &w->nodes, MOST_SUCCESSORS, sizeof(Node));
    for (int64_t i = 0; i < from.count; i++)
        for (int64_t j = i + 1; j < from.count; j++) {
            Operation operations[4];
            int64_t count = legal_operations(w, from.state[i], from.state[j], operations);
            for (int64_t o = 0; o < count; o++) {
                Node *node = nodes + found;
                *node = (Node){operations[o], at, from.depth + 1, 0, {0}};
                for (int64_t k = 0; k < from.count; k++)
                    if (k != i && k != j) node->state[node->count++] = from.state[k];
                node->state[node->count++] = operations[o].result;
                int64_t *key = sorted[found], size = node->count * sizeof *key, same = 0;
                for (int64_t k = 0, l; k < node->count; k++) {
                    for (l = k; l > 0 && key[l - 1] > node->state[k]; l--) key[l] = key[l - 1];
                    key[l] = node->state[k];
                }
                while (same < found && memcmp(sorted[same], key, size)) same++;
                found += same == found;
            }
        }
    for (int64_t i = 0; i < found && found > beam; i++) rank[i] = heuristic(w, nodes + i);
    for (int64_t i = 0; i < found; i++) {
        int64_t better = 0;
        for (int64_t j = 0; j < found && found > beam; j++)
            better += rank[j] < rank[i] || (rank[j] == rank[i] && j < i);
        if (better < beam) nodes[kept++] = nodes[i];
    }
    w->nodes.size = first + kept;
    return kept;
}

static int before(const Queued *a, const Queued *b) {
    return a->rank < b->rank || (a->rank == b->rank && a->order < b->order);
}

static void push(Work *w, Vector *queue, Queued entry) {
    extend(w, queue, 1, sizeof entry);
    Queued *heap = (Queued *)queue->data;
    int64_t at = queue->size - 1;
    for (; at > 0 && before(&entry, heap + (at - 1) / 2); at = (at - 1) / 2) heap[at] = heap[(at - 1) / 2];
    heap[at] = entry;
}

static int64_t pop(Vector *queue) {
    Queued *heap = (Queued *)queue->data, last = heap[--queue->size];
    int64_t node = heap[0].node, at = 0, child;
    while ((child = 2 * at + 1) < queue->size) {
        if (child + 1 < queue->size && before(heap + child + 1, heap + child)) child++;
        if (!before(heap + child, &last)) break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = last;
    return node;
}

static Path leaves(Work *w, Text *text, int64_t at) {
    Operation operations[4];
    const int64_t *state = node_at(w, at)->state, count = legal_operations(w, state[0], state[1], operations);
    for (int64_t i = 0; i < count; i++) {
        int64_t result = operations[i].result;
        write_word(w, text, operations[i].op);
        write_number(w, text, result);
        write_word(w, text, result == w->target ? HIT : result < w->target ? BELOW : ABOVE);
        end_event(w, text);
        if (result == w->target) return (Path){1, at, operations[i]};
    }
    return (Path){0};
}

static Path depth_first(Work *w, const Search *search, int64_t first, int64_t count) {
    for (int64_t child = first; child < first + count; child++) {
        Path path;
        write_line(w, search->text, child);
        end_event(w, search->text);
        if (node_at(w, child)->count == 2) {
            path = leaves(w, search->text, child);
        } else {
            int64_t next = w->nodes.size;
            path = depth_first(w, search, next, expand(w, child, search->beam));
        }
        if (path.found) return path;
    }
    return (Path){0};
}

static Path spawn(Work *w, Text *text, const Search *child, int64_t first, int64_t count);

static Path run(Work *w, const Search *search, const Search *child, int64_t start) {
    Vector *queue = search->queue;
    Text *text = search->text;
    int64_t order = 0;
    queue->size = 0;
    push(w, queue, (Queued){0, order++, start});
    while (queue->size) {
        Path path;
        int64_t at = pop(queue);
        if (at != start) {
            write_word(w, text, GOTO);
            write_lines(w, text, at);
            write_word(w, text, GO);
            end_event(w, text);
        }
        if (node_at(w, at)->count == 2) {
            path = leaves(w, text, at);
        } else {
            int64_t first = w->nodes.size, count = expand(w, at, search->beam);
            if (uniform(&w->random) >= search->promising) {
                write_word(w, text, LIST);
                end_event(w, text);
                for (int64_t node = first; node < first + count; node++) {
                    write_line(w, text, node);
                    end_event(w, text);
                    int64_t rank = search->best_first ? heuristic(w, node_at(w, node)) : 0;
                    push(w, queue, (Queued){rank, order++, node});
                }
                continue;
            }
            if (node_at(w, at)->depth <= search->spawn_depth && count >= 2)
                path = spawn(w, text, child, first, count);
            else
                path = depth_first(w, search, first, count);
        }
        if (path.found) return path;
    }
    return (Path){0};
}

static Path spawn(Work *w, Text *text, const Search *child, int64_t first, int64_t count) {
    Path paths[MOST_SUCCESSORS], found = {0};
    if (count > w->s->messages) longjmp(w->leave, 1);
    write_word(w, text, SPAWN);
    for (int64_t i = 0; i < count; i++) {
        write_id(w, text, w->s->message_ids[count - i - 1]);
        write_number(w, text, w->target);
        write_lines(w, text, first + i);
    }
    write_word(w, text, RUN);
    end_event(w, text);
    for (int64_t i = 0; i < count; i++) {
        write_word(w, child->text, CHILD);
        write_number(w, child->text, w->target);
        write_lines(w, child->text, first + i);
        write_word(w, child->text, GO);
        end_event(w, child->text);
        paths[i] = run(w, child, child, first + i);
        write_path(w, child->text, JOIN, paths + i);
        write_word(w, child->text, END);
        end_event(w, child->text);
        Mark *mark = extend(w, &w->trace->marks, 1, sizeof *mark);
        *mark = (Mark){child->text->ids.size, child->text->ends.size, paths[i].found};
        if (!found.found) found = paths[i];
    }
    for (int64_t i = 0; i < count; i++) write_path(w, text, JOINED, paths + i);
    write_word(w, text, RESUME);
    end_event(w, text);
    return found;
}

static void solve_trace(Work *w, Trace *trace, const int64_t *numbers, int64_t count) {
    const Settings *s = w->s;
    int64_t beam = s->beam_low + below(&w->random, s->beam_high - s->beam_low + 1), wider = beam;
    Text *text = &trace->root;
    Search search = {text, w->queues, beam, s->solver != SOS, -1, s->promising};
    if (s->solver == SOS) search.promising = uniform(&w->random) < 0.5;
    if (s->solver == APR) {
        search.spawn_depth = s->spawn_depth;
        wider += below(&w->random, (s->child_beam > beam ? s->child_beam : beam) - beam + 1);
    }
    Search child = {&trace->children, w->queues + 1, wider, 1, -1, s->child_promising};
    text->ids.size = text->ends.size = trace->marks.size = w->nodes.size = 0;
    trace->children.ids.size = trace->children.ends.size = 0;
    w->trace = trace;
    Node *root = extend(w, &w->nodes, 1, sizeof *root);
    *root = (Node){{0}, -1, 0, count, {0}};
    memcpy(root->state, numbers, count * sizeof *numbers);
    write_word(w, text, ROOT);
    write_number(w, text, w->target);
    write_id(w, text, s->depth_ids[0]);
    for (int64_t i = 0; i < count; i++) write_number(w, text, numbers[i]);
    write_word(w, text, GO);
    end_event(w, text);
    Path path = run(w, &search, &child, 0);
    write_path(w, text, ANSWER, &path);
    write_word(w, text, END);
    end_event(w, text);
    trace->solved = path.found;
}

static int64_t event_count(const Trace *trace) { return trace->root.ends.size + trace->children.ends.size; }

/* The shortest of the candidates that solve it, the first if none does; NULL if that is not wanted. */
static Trace *draw_trace(Work *w, const int64_t *numbers, int64_t count) {
    Trace *best = NULL, *other = w->traces;
    for (int64_t i = 0; i < w->s->candidates; i++) {
        solve_trace(w, other, numbers, count);
        int shorter = best && event_count(other) < event_count(best);
        if (best == NULL || (other->solved && (!best->solved || shorter))) {
            best = other;
            other = best == w->traces ? w->traces + 1 : w->traces;
        }
    }
    return best->solved || !w->s->only_solved ? best : NULL;
}

static void write_condition(Work *w, Text *text, int64_t amount) {
    write_word(w, text, w->s->solver == APR ? CHILDREN : TOKENS);
    write_number(w, text, amount);
}

static int64_t token_budget(Work *w, int64_t length, int cut) {
    int64_t step = w->s->token_step, window = w->s->window, amount = (length - 1) / step * step;
    do {
        w->framing.ids.size = 0;
        write_condition(w, &w->framing, amount += step);
    } while (length + w->framing.ids.size > amount);
    if (!cut && amount <= window) return amount;
    int64_t choices = (amount < window ? amount : window) / step - 1; /* of 2, 3, ... steps */
    return choices > 0 ? (2 + below(&w->random, choices)) * step : amount;
}

/* What the prompt asks for; -1: nothing. */
static int64_t draw_condition(Work *w, const Trace *trace) {
    if (uniform(&w->random) >= w->s->condition_share) return -1;
    if (w->s->solver == APR) return trace->marks.size <= w->s->max_children ? trace->marks.size : -1;
    int cut = uniform(&w->random) < w->s->cut_share;
    return token_budget(w, trace->root.ids.size, cut);
}

/* Copies the events [from, to) of a text to the output: tokens, and whether a model would sample them. */
static void copy_events(Work *w, Output *out, const Text *text, int64_t from, int64_t to) {
    const int32_t *ids = (const int32_t *)text->ids.data, *words = w->s->words;
    const int64_t *ends = (const int64_t *)text->ends.data;
    for (int64_t i = from, start = from ? ends[from - 1] : 0; i < to; start = ends[i++]) {
        int sampled = ids[start] != words[ROOT] && ids[start] != words[CHILD] && ids[start] != words[JOINED];
        int64_t size = ends[i] - start;
        memcpy(extend(w, &out->ids, size, sizeof *ids), ids + start, size * sizeof *ids);
        memset(extend(w, &out->mask, size, 1), sampled, size);
    }
}

static void write_rows(Work *w, Output *out, const Trace *trace, int64_t problem) {
    const Settings *s = w->s;
    const Text *root = &trace->root;
    const Mark *marks = (const Mark *)trace->marks.data;
    const int64_t *ends = (const int64_t *)root->ends.data;
    int64_t amount = draw_condition(w, trace), children = trace->marks.size, events = root->ends.size;
    Text *framing = &w->framing;
    framing->ids.size = framing->ends.size = 0;
    for (int64_t i = 0; i < ends[0] - 1; i++) write_id(w, framing, ((int32_t *)root->ids.data)[i]);
    if (amount >= 0) write_condition(w, framing, amount);
    write_word(w, framing, GO);
    end_event(w, framing);
    int64_t asked = framing->ids.size - ends[0], length = root->ids.size + asked;
    int64_t budget = amount >= 0 ? amount : s->window;
    int gives_up = s->solver != APR && length > budget;
    if (gives_up) {
        write_path(w, framing, ANSWER, &(Path){0});
        write_word(w, framing, END);
        end_event(w, framing);
        for (events = 1; ends[events] - ends[0] + framing->ids.size <= budget; events++) {}
        length = ends[events - 1] - ends[0] + framing->ids.size;
    }
    int64_t longest = length;
    for (int64_t i = 0, from = 0; i < children; from = marks[i++].ids)
        if (marks[i].ids - from > longest) longest = marks[i].ids - from;
    if (longest > s->window) return;
    Row *rows = extend(w, &out->rows, 1 + children, sizeof *rows);
    rows[0] = (Row){problem, 0, -1, length, trace->solved && !gives_up, children, amount};
    copy_events(w, out, framing, 0, 1);
    copy_events(w, out, root, 1, events);
    copy_events(w, out, framing, 1, framing->ends.size);
    Mark from = {0};
    for (int64_t i = 0; i < children; from = marks[i++])
        rows[1 + i] = (Row){problem, 1 + i, 0, marks[i].ids - from.ids, marks[i].solved, children, amount};
    copy_events(w, out, &trace->children, 0, trace->children.ends.size);
}

/* Whether values stay within 64 bits: no expression is beyond the product of its numbers, 0 and 1 taken as 2,
 * and a heuristic adds up at most one distance per number. */
static int is_small(const int64_t *numbers, int64_t count, int64_t target) {
    int64_t left = (int64_t)1 << 58;
    if (count < 2 || count > MOST_NUMBERS || target > MOST_TARGET) return 0;
    for (int64_t i = 0; i < count; i++) left /= numbers[i] > 2 ? numbers[i] : 2;
    return left > 0;
}

static void find_factors(Work *w, int64_t target) {
    w->target = target;
    w->factor_count = 0;
    for (int64_t d = 1; d * d <= target; d++)
        if (target % d == 0) {
            if (d > 1) w->factors[w->factor_count++] = d;
            if (target / d > 1) w->factors[w->factor_count++] = target / d;
        }
}

/* Writes the rows of a problem; 0, and nothing written, if it is left to Python. */
static int make_rows(Work *w, Output *out, int64_t problem, const int64_t *numbers, int64_t count,
                     int64_t target, const uint64_t *seeds) {
    const int64_t ids = out->ids.size, mask = out->mask.size, rows = out->rows.size;
    if (!is_small(numbers, count, target)) return 0;
    if (setjmp(w->leave)) {
        out->ids.size = ids, out->mask.size = mask, out->rows.size = rows;
        return 0;
    }
    find_factors(w, target);
    seed_random(&w->random, seeds[0]);
    const Trace *trace = draw_trace(w, numbers, count);
    seed_random(&w->random, seeds[1]);
    if (trace != NULL) write_rows(w, out, trace, problem);
    return 1;
}

static void clear(Text *text) {
    free(text->ids.data);
    free(text->ends.data);
}

/* Problem p has the numbers from starts[p] on, and the seeds of its trace and of its condition in seeds[2 p].
 * What is left to Python is marked in left[p]. The output, empty at first, is for `apr_free`. */
void apr_traces(const Settings *settings, int64_t problems, const int64_t *starts, const int64_t *numbers,
                const int64_t *targets, const uint64_t *seeds, uint8_t *left, Output *out) {
    Work work = {.s = settings}, *w = &work;
    for (int64_t p = 0; p < problems; p++)
        left[p] = !make_rows(w, out, p, numbers + starts[p], starts[p + 1] - starts[p], targets[p],
                             seeds + 2 * p);
    for (int i = 0; i < 2; i++) {
        clear(&w->traces[i].root);
        clear(&w->traces[i].children);
        free(w->traces[i].marks.data);
        free(w->queues[i].data);
    }
    clear(&w->framing);
    free(w->nodes.data);
}

void apr_free(Output *out) {
    free(out->ids.data);
    free(out->mask.data);
    free(out->rows.data);
}
