/* The search of the solvers SoS, SoS+ and APR (paper, section 3.2): `solver.py` says what for.
 *
 * One search serves all: a node is taken from a queue, and its children are searched depth-first at once, queued,
 * or (APR) spawned as threads, each of which runs the same search below its node; those above `depth` may spawn too.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_NUMBERS = 6, MOST_SUCCESSORS = 4 * MOST_NUMBERS * (MOST_NUMBERS - 1) / 2, MOST_FACTORS = 2048,
       LEVELS = MOST_NUMBERS };

/* What is written: a number as itself, a word as one of these; DEPTH - d is ":d", COUNT - n is "#n". */
enum { ROOT = -1, CHILD = -2, GO = -3, LIST = -4, GOTO = -5, SPAWN = -6, RUN = -7, JOINED = -8, RESUME = -9, JOIN = -10,
       ANSWER = -11, NONE = -12, COMMA = -13, END = -14, PLUS = -15, MINUS = -16, TIMES = -17, OVER = -18, EQUALS = -19,
       BELOW = -20, HIT = -21, ABOVE = -22, DEPTH = -100, COUNT = -200 };

enum { MULTIPLY, RESULT, SHRINK }; /* heuristics */

static const int64_t LAST = INT64_MAX / 2; /* beyond every value and every sum of two */

typedef struct {
    int64_t beam, child_beam, best_first, depth, spawn_depth, heuristic, max_value;
    double promising, child_promising;
} Settings;

typedef struct { char *data; int64_t size, capacity; } Vector; /* in elements */
typedef struct { Vector words, ends; } Text;                   /* int64: what is written, and where each step ends */
typedef struct { int64_t parent, words, ends, solved; } Mark;  /* its place in the level above; where its thread ends */
typedef struct { Text text; Vector marks; } Level;             /* threads nested so deep, one behind the other */
typedef struct { int64_t left, op, right, result; } Operation;
typedef struct { Operation by; int64_t parent, depth, count, state[MOST_NUMBERS]; } Node;
typedef struct { int64_t found, node; Operation last; } Path;
typedef struct { int64_t rank, node; } Queued;
typedef struct { Text *text; int64_t level, beam, spawn_depth; double promising; } Search; /* of one thread */

typedef struct {
    const Settings *s;
    double (*uniform)(void);
    int64_t target, factors[MOST_FACTORS], factor_count;
    Vector nodes, queues[LEVELS]; /* the successors of a node are next to one another; a queue for each level */
    Level levels[LEVELS];
} Work;

/* Room for `count` more elements at the end. */
static void *extend(Vector *v, int64_t count, int64_t bytes) {
    if (v->size + count > v->capacity) {
        v->capacity = 2 * (v->size + count) + 64;
        v->data = realloc(v->data, v->capacity * bytes);
        if (v->data == NULL) abort();
    }
    v->size += count;
    return v->data + (v->size - count) * bytes;
}

static void append(Text *text, const int64_t *words, int64_t count) {
    memcpy(extend(&text->words, count, sizeof *words), words, count * sizeof *words);
}

#define write(text, ...) append(text, (int64_t[]){__VA_ARGS__}, sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t))

static void end_step(Text *text) { *(int64_t *)extend(&text->ends, 1, sizeof(int64_t)) = text->words.size; }

static void write_operation(Text *text, const Operation *o) {
    write(text, o->left, o->op, o->right, EQUALS, o->result);
}

static const Node *node_at(const Work *w, int64_t at) { return (const Node *)w->nodes.data + at; }

/* A state: the operation that leads there, and the numbers that it leaves. */
static void write_state(const Work *w, Text *text, int64_t at) {
    const Node *node = node_at(w, at);
    write_operation(text, &node->by);
    for (int64_t i = 0; i + 1 < node->count; i++) write(text, node->state[i]);
}

static void write_line(const Work *w, Text *text, int64_t at) {
    write(text, DEPTH - node_at(w, at)->depth);
    write_state(w, text, at);
}

/* The lines from the root down to a state. */
static void write_lines(const Work *w, Text *text, int64_t at) {
    if (node_at(w, at)->depth == 0) return;
    write_lines(w, text, node_at(w, at)->parent);
    write_line(w, text, at);
}

static void write_operations(const Work *w, Text *text, int64_t at) {
    if (node_at(w, at)->depth == 0) return;
    write_operations(w, text, node_at(w, at)->parent);
    write_operation(text, &node_at(w, at)->by);
    write(text, COMMA);
}

static void write_path(const Work *w, Text *text, int64_t first, const Path *path) {
    write(text, first);
    if (!path->found) { write(text, NONE); return; }
    write_operations(w, text, path->node);
    write_operation(text, &path->last);
}

static int64_t legal_operations(const Work *w, int64_t x, int64_t y, Operation *found) {
    int64_t high = x > y ? x : y, low = x > y ? y : x, count = 0, bound = w->s->max_value;
    if (high + low <= bound) found[count++] = (Operation){high, PLUS, low, high + low};
    if (high - low <= bound) found[count++] = (Operation){high, MINUS, low, high - low};
    if (high * low <= bound) found[count++] = (Operation){high, TIMES, low, high * low};
    if (low > 0 && high % low == 0 && high / low <= bound)
        found[count++] = (Operation){high, OVER, low, high / low};
    return count;
}

/* How far a number is from the nearest factor of the target but 1. */
static int64_t factor_distance(const Work *w, int64_t number) {
    int64_t least = llabs(number - w->target);
    for (int64_t i = 0; i < w->factor_count; i++) {
        int64_t distance = llabs(number - w->factors[i]);
        if (distance < least) least = distance;
    }
    return least;
}

/* Lower is more promising. MULTIPLY is the paper's: how far all numbers are from factors of the target; RESULT: how far
 * the newest is; SHRINK: what is smallest after a difference or quotient, then where the two largest were joined. */
static int64_t heuristic(const Work *w, const Node *node) {
    const Operation *by = &node->by;
    int64_t sum = 0;
    if (w->s->heuristic == RESULT) return factor_distance(w, by->result);
    if (w->s->heuristic == SHRINK) return by->op == MINUS || by->op == OVER ? by->result : LAST - by->left - by->right;
    for (int64_t i = 0; i < node->count; i++) sum += factor_distance(w, node->state[i]);
    return sum;
}

/* Whether nodes[found] is, as a multiset, one of those before it; `sorted` has theirs. */
static int is_known(const Node *nodes, int64_t found, int64_t sorted[][MOST_NUMBERS]) {
    const Node *node = nodes + found;
    int64_t *key = sorted[found], same = 0;
    for (int64_t k = 0, l; k < node->count; k++) {
        for (l = k; l > 0 && key[l - 1] > node->state[k]; l--) key[l] = key[l - 1];
        key[l] = node->state[k];
    }
    while (same < found && memcmp(sorted[same], key, node->count * sizeof *key)) same++;
    return same < found;
}

/* Appends the `beam` best successors of a node to `nodes`, in canonical order: pairs by position, then + - * /; their
 * number. A successor is the numbers that the operation leaves, in their order, then its result; of successors equal
 * as multisets the first is kept: canonical order and merged states are what makes the next token predictable. */
static int64_t expand(Work *w, int64_t at, int64_t beam) {
    const Node from = *node_at(w, at);
    int64_t sorted[MOST_SUCCESSORS][MOST_NUMBERS], rank[MOST_SUCCESSORS];
    int64_t found = 0, kept = 0, first = w->nodes.size;
    Node *nodes = extend(&w->nodes, MOST_SUCCESSORS, sizeof(Node));
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
                found += !is_known(nodes, found, sorted);
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

/* Into the queue, which is in order from `next` on: before what is less promising. */
static void push(Vector *queue, int64_t next, Queued entry) {
    extend(queue, 1, sizeof entry);
    Queued *queued = (Queued *)queue->data;
    int64_t at = queue->size - 1;
    for (; at > next && queued[at - 1].rank > entry.rank; at--) queued[at] = queued[at - 1];
    queued[at] = entry;
}

/* The results of the last two numbers against the target, up to the first that is it. */
static Path leaves(const Work *w, Text *text, int64_t at) {
    Operation operations[4];
    const int64_t *state = node_at(w, at)->state, count = legal_operations(w, state[0], state[1], operations);
    for (int64_t i = 0; i < count; i++) {
        int64_t result = operations[i].result;
        write(text, operations[i].op, result, result == w->target ? HIT : result < w->target ? BELOW : ABOVE);
        end_step(text);
        if (result == w->target) return (Path){1, at, operations[i]};
    }
    return (Path){0};
}

static Path depth_first(Work *w, const Search *search, int64_t first, int64_t count) {
    Path path = {0};
    for (int64_t child = first; child < first + count && !path.found; child++) {
        write_line(w, search->text, child);
        end_step(search->text);
        int64_t next = w->nodes.size;
        if (node_at(w, child)->count == 2) path = leaves(w, search->text, child);
        else path = depth_first(w, search, next, expand(w, child, search->beam));
    }
    return path;
}

static void list(Work *w, const Search *search, int64_t first, int64_t count, int64_t next) {
    write(search->text, LIST);
    end_step(search->text);
    for (int64_t node = first; node < first + count; node++) {
        write_line(w, search->text, node);
        end_step(search->text);
        push(w->queues + search->level, next, (Queued){w->s->best_first ? heuristic(w, node_at(w, node)) : 0, node});
    }
}

static Path spawn(Work *w, int64_t level, int64_t first, int64_t count);

/* Searches below `start`, which the prompt of a thread at a level has shown. A child that may spawn does so as the root
 * does, from its first node on. */
static Path run(Work *w, int64_t level, int64_t start) {
    Text *text = &w->levels[level].text;
    Vector *queue = w->queues + level;
    int64_t next = 0, spawns = level < w->s->depth, deepest = node_at(w, start)->depth + w->s->spawn_depth;
    Search search = {text, level, w->s->child_beam, -1, w->s->child_promising};
    if (spawns || level == 0) search = (Search){text, level, w->s->beam, spawns ? deepest : -1, w->s->promising};
    Path path = {0};
    queue->size = 0;
    push(queue, next, (Queued){0, start});
    while (next < queue->size && !path.found) {
        int64_t at = ((Queued *)queue->data)[next++].node;
        if (at != start) {
            write(text, GOTO);
            write_lines(w, text, at);
            write(text, GO);
            end_step(text);
        }
        if (node_at(w, at)->count == 2) {
            path = leaves(w, text, at);
            continue;
        }
        int64_t first = w->nodes.size, count = expand(w, at, search.beam);
        if (w->uniform() >= search.promising) list(w, &search, first, count, next);
        else if (node_at(w, at)->depth <= search.spawn_depth && count >= 2) path = spawn(w, level, first, count);
        else path = depth_first(w, &search, first, count);
    }
    return path;
}

/* Ends the thread that a level has last: what it says, and whose child it is, the one that its parents' level is at. */
static void end_thread(Work *w, int64_t level, int64_t word, const Path *path) {
    Text *text = &w->levels[level].text;
    write_path(w, text, word, path);
    write(text, END);
    end_step(text);
    *(Mark *)extend(&w->levels[level].marks, 1, sizeof(Mark)) =
        (Mark){level ? w->levels[level - 1].marks.size : -1, text->words.size, text->ends.size, path->found};
}

static Path spawn(Work *w, int64_t level, int64_t first, int64_t count) {
    Text *text = &w->levels[level].text, *child = &w->levels[level + 1].text;
    Path paths[MOST_SUCCESSORS], found = {0};
    write(text, SPAWN, w->target); /* the head of all messages: what their states have in common */
    write_lines(w, text, node_at(w, first)->parent);
    write(text, DEPTH - node_at(w, first)->depth);
    for (int64_t i = 0; i < count; i++) {
        write(text, COUNT - (count - i));
        write_state(w, text, first + i);
    }
    write(text, RUN);
    end_step(text);
    for (int64_t i = 0; i < count; i++) {
        write(child, CHILD, w->target);
        write_lines(w, child, first + i);
        write(child, GO);
        end_step(child);
        paths[i] = run(w, level + 1, first + i);
        end_thread(w, level + 1, JOIN, paths + i);
        if (!found.found) found = paths[i];
    }
    for (int64_t i = 0; i < count; i++) write_path(w, text, JOINED, paths + i);
    write(text, RESUME);
    end_step(text);
    return found;
}

static void find_factors(Work *w) {
    w->factor_count = 0;
    for (int64_t d = 1; d * d <= w->target; d++)
        if (w->target % d == 0) {
            if (d > 1) w->factors[w->factor_count++] = d;
            if (w->target / d > 1) w->factors[w->factor_count++] = w->target / d;
        }
}

/* The levels of one trace, the root's first, which are there until the thread's next call; `uniform` draws from [0, 1).
 * No value on the way leaves 64 bits. */
const Level *apr_search(const Settings *s, const int64_t *numbers, int64_t count, int64_t target,
                        double (*uniform)(void)) {
    static _Thread_local Work work;
    Work *w = &work;
    Text *text = &w->levels[0].text;
    w->s = s, w->target = target, w->uniform = uniform;
    find_factors(w);
    w->nodes.size = 0;
    for (Level *level = w->levels; level < w->levels + LEVELS; level++)
        level->text.words.size = level->text.ends.size = level->marks.size = 0;
    Node *root = extend(&w->nodes, 1, sizeof *root);
    *root = (Node){{0}, -1, 0, count, {0}};
    memcpy(root->state, numbers, count * sizeof *numbers);
    write(text, ROOT, target, DEPTH);
    append(text, numbers, count);
    write(text, GO);
    end_step(text);
    Path path = run(w, 0, 0);
    end_thread(w, 0, ANSWER, &path);
    return w->levels;
}
