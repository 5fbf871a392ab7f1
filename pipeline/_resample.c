/* The inner loops of pipeline/resize.py: a picture resized by weights that are given, first each row, then each column.

   As Pillow does it, so that the result is Pillow's bit for bit: a weight is a whole multiple of 2^-22, and the sum is
   rounded to 8 bits after each of the two passes. Needs a processor with AVX2; without one the import fails, and Pillow
   does the work. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define AVX2 __attribute__((target("avx2")))
#define BITS 22
#define HALF (1 << (BITS - 1))
#define PART 11 /* bits of the lower part of a weight */
#define LINES 4 /* rows that are made at a time */
#define PAST(pairs) (8 * (pairs) + 8) /* bytes that `across` may read behind a row */

/* Which lines make a line of the result: `count` of them from `start` on, and their weights in a row of `width`. */
typedef struct {
    const int32_t *start, *count, *weight;
    Py_ssize_t width;
} Taps;

/* The weights of two neighbours in two parts each, 2^11 * high + low: the processor multiplies words of 16 bits and adds
   two products in one step. The sums of the parts give that of the whole weights exactly. */
typedef struct {
    int16_t high[2], low[2];
} Pair;

AVX2 static inline __m256i both(const int16_t *two)
{
    int32_t word;
    memcpy(&word, two, 4);
    return _mm256_set1_epi32(word);
}

AVX2 static inline __m256i rounded(__m256i high, __m256i low)
{
    __m256i sum = _mm256_add_epi32(_mm256_slli_epi32(high, PART), low);
    return _mm256_srai_epi32(_mm256_add_epi32(sum, _mm256_set1_epi32(HALF)), BITS);
}

/* LINES rows of pixels of four bytes -> `size` of them each, one row after the other. Each pixel has `count` pairs. */
AVX2 static void across(const uint8_t *const *rows, const int32_t *start, const Pair *pair, Py_ssize_t count,
                        Py_ssize_t size, uint8_t *out)
{
    const __m256i beside = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, -1, 4, -1, 1, -1, 5, -1, 2, -1, 6, -1, 3, -1, 7, -1)); /* two pixels, channel by channel */
    for (Py_ssize_t x = 0; x < size; x++) {
        __m256i high[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()}, low[2] = {high[0], high[0]};
        Py_ssize_t at = 4 * (Py_ssize_t)start[x];
        for (Py_ssize_t t = 0; t < count; t++, pair++, at += 8) {
            __m256i highs = both(pair->high), lows = both(pair->low);
            for (int i = 0; i < 2; i++) {
                __m256i two = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(rows[2 * i] + at)));
                two = _mm256_inserti128_si256(two, _mm_loadu_si128((const __m128i *)(rows[2 * i + 1] + at)), 1);
                two = _mm256_shuffle_epi8(two, beside);
                high[i] = _mm256_add_epi32(high[i], _mm256_madd_epi16(two, highs));
                low[i] = _mm256_add_epi32(low[i], _mm256_madd_epi16(two, lows));
            }
        }
        __m256i words = _mm256_packs_epi32(rounded(high[0], low[0]), rounded(high[1], low[1]));
        __m256i bytes = _mm256_packus_epi16(words, words); /* clipped to 0..255; rows 0 and 2, then 1 and 3 */
        __m128i even = _mm256_castsi256_si128(bytes), odd = _mm256_extracti128_si256(bytes, 1);
        int32_t values[LINES] = {_mm_extract_epi32(even, 0), _mm_extract_epi32(odd, 0), _mm_extract_epi32(even, 1),
                                 _mm_extract_epi32(odd, 1)};
        for (int i = 0; i < LINES; i++)
            memcpy(out + 4 * (i * size + x), &values[i], 4);
    }
}

/* One row of pixels of four bytes -> a row of each of three planes, one after the other. */
AVX2 static void apart(const uint8_t *restrict row, Py_ssize_t size, uint8_t *restrict r)
{
    uint8_t *restrict g = r + size, *restrict b = g + size;
    for (Py_ssize_t x = 0; x < size; x++) {
        r[x] = row[4 * x];
        g[x] = row[4 * x + 1];
        b[x] = row[4 * x + 2];
    }
}

/* `count` pairs of rows of `size` bytes -> one row. `size` is a multiple of 32. */
AVX2 static void down(const uint8_t *const *rows, Py_ssize_t size, const Pair *pair, Py_ssize_t count, uint8_t *out)
{
    const __m256i zero = _mm256_setzero_si256();
    for (Py_ssize_t x = 0; x < size; x += 32) {
        __m256i high[4] = {zero, zero, zero, zero}, low[4] = {zero, zero, zero, zero};
        for (Py_ssize_t t = 0; t < count; t++) {
            __m256i highs = both(pair[t].high), lows = both(pair[t].low);
            __m256i one = _mm256_loadu_si256((const __m256i *)(rows[2 * t] + x));
            __m256i other = _mm256_loadu_si256((const __m256i *)(rows[2 * t + 1] + x));
            __m256i first = _mm256_unpacklo_epi8(one, other), last = _mm256_unpackhi_epi8(one, other);
            __m256i words[4] = {_mm256_unpacklo_epi8(first, zero), _mm256_unpackhi_epi8(first, zero),
                                _mm256_unpacklo_epi8(last, zero), _mm256_unpackhi_epi8(last, zero)};
            for (int i = 0; i < 4; i++) {
                high[i] = _mm256_add_epi32(high[i], _mm256_madd_epi16(words[i], highs));
                low[i] = _mm256_add_epi32(low[i], _mm256_madd_epi16(words[i], lows));
            }
        }
        __m256i first = _mm256_packs_epi32(rounded(high[0], low[0]), rounded(high[1], low[1]));
        __m256i last = _mm256_packs_epi32(rounded(high[2], low[2]), rounded(high[3], low[3]));
        _mm256_storeu_si256((__m256i *)(out + x), _mm256_packus_epi16(first, last)); /* clipped to 0..255 */
    }
}

/* What `resample` works with, in one block of memory. */
typedef struct {
    Pair *across, *down;   /* of all columns and rows of the result */
    const uint8_t **rows;  /* that make a row of the result */
    uint8_t *copies;       /* of the last rows of the picture, with room behind them */
    uint8_t *line;         /* LINES rows of pixels of the result's width */
    uint8_t *ring;         /* the last `slots` of these as planes: row y is in slot y % slots */
    Py_ssize_t pairs_across, pairs_down, slots;
} Work;

/* Put rows y, y + 1, ... of the picture, LINES of them at most, at the result's width into the ring. */
static void add_rows(const uint8_t *pixels, Py_ssize_t height, Py_ssize_t width, Py_ssize_t y, Taps columns,
                     Py_ssize_t size, Work work)
{
    const uint8_t *rows[LINES];
    Py_ssize_t past = PAST(work.pairs_across);
    for (Py_ssize_t i = 0; i < LINES; i++) {
        Py_ssize_t row = y + i < height ? y + i : height - 1;
        rows[i] = pixels + 4 * row * width;
        if (4 * (height - 1 - row) * width < past)
            rows[i] = memcpy(work.copies + i * (4 * width + past), rows[i], 4 * width);
    }
    if (width != size)
        across(rows, columns.start, work.across, work.pairs_across, size, work.line);
    for (Py_ssize_t i = 0; i < LINES && y + i < height; i++)
        apart(width != size ? work.line + 4 * i * size : rows[i], size, work.ring + (y + i) % work.slots * 3 * size);
}

static void resample(const uint8_t *pixels, Py_ssize_t height, Py_ssize_t width, Taps columns, Taps rows,
                     Py_ssize_t size, Work work, uint8_t *out)
{
    Py_ssize_t done = 0; /* rows of the picture */
    for (Py_ssize_t y = 0; y < size; y++) {
        for (; done < rows.start[y] + rows.count[y]; done += LINES)
            add_rows(pixels, height, width, done, columns, size, work);
        for (int plane = 0; plane < 3; plane++) {
            for (Py_ssize_t t = 0; t < 2 * work.pairs_down; t++)
                work.rows[t] = work.ring + ((rows.start[y] + t) % work.slots * 3 + plane) * size;
            down(work.rows, size, work.down + y * work.pairs_down, (rows.count[y] + 1) / 2,
                 out + (plane * size + y) * size);
        }
    }
}

/* Whether start, count and weights of int32 say how `size` lines are made of `length`, in order. */
static int is_taps(const Py_buffer *given, Py_ssize_t size, Py_ssize_t length, Taps *taps)
{
    if (given[0].len != 4 * size || given[1].len != 4 * size || given[2].len % (4 * size))
        return 0;
    *taps = (Taps){given[0].buf, given[1].buf, given[2].buf, given[2].len / (4 * size)};
    for (Py_ssize_t i = 0; i < size; i++)
        if (taps->start[i] < (i ? taps->start[i - 1] : 0) || taps->count[i] < 1 || taps->count[i] > taps->width ||
            taps->start[i] > length - taps->count[i])
            return 0;
    for (Py_ssize_t i = 0; i < size * taps->width; i++)
        if (taps->weight[i] >= 1 << (15 + PART) || taps->weight[i] < -(1 << (15 + PART)))
            return 0;
    return 1;
}

/* The weights of `size` lines as pairs; 0 behind the last of a line. */
static void make_pairs(Taps taps, Py_ssize_t size, Py_ssize_t count, Pair *pairs)
{
    for (Py_ssize_t i = 0; i < size; i++)
        for (Py_ssize_t t = 0; t < 2 * count; t++) {
            int32_t weight = t < taps.count[i] ? taps.weight[i * taps.width + t] : 0;
            int32_t low = weight & ((1 << PART) - 1);
            pairs[i * count + t / 2].high[t % 2] = (weight - low) / (1 << PART);
            pairs[i * count + t / 2].low[t % 2] = low;
        }
}

/* Return the block of memory, to be freed; NULL where there is none. */
static void *make_work(Taps columns, Taps rows, Py_ssize_t width, Py_ssize_t size, Work *work)
{
    Py_ssize_t pairs_across = (columns.width + 1) / 2, pairs_down = (rows.width + 1) / 2, slots = rows.width + LINES;
    Py_ssize_t sizes[] = {sizeof(uint8_t *) * 2 * pairs_down, sizeof(Pair) * size * pairs_across,
                          sizeof(Pair) * size * pairs_down, LINES * (4 * width + PAST(pairs_across)),
                          LINES * 4 * size, 3 * size * slots};
    Py_ssize_t total = 0;
    uint8_t *parts[6];
    for (int i = 0; i < 6; i++)
        total += sizes[i];
    uint8_t *block = PyMem_RawCalloc(total, 1);
    if (!block)
        return NULL;
    for (Py_ssize_t i = 0, at = 0; i < 6; at += sizes[i++])
        parts[i] = block + at;
    *work = (Work){(Pair *)parts[1], (Pair *)parts[2], (const uint8_t **)parts[0], parts[3], parts[4], parts[5],
                   pairs_across, pairs_down, slots};
    make_pairs(columns, size, pairs_across, work->across);
    make_pairs(rows, size, pairs_down, work->down);
    return block;
}

PyDoc_STRVAR(about, "resample(pixels, height, width, size, columns, rows, out)\n\n"
                    "(height, width, 4) bytes, of which three count -> out, (3, size, size) bytes. columns and rows:\n"
                    "(start, count, weights), int32, of the columns and the rows of the result.");

static PyObject *call(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    Py_buffer pixels, out, given[6];
    Py_ssize_t height, width, size;
    if (!PyArg_ParseTuple(arguments, "y*nnn(y*y*y*)(y*y*y*)w*", &pixels, &height, &width, &size, &given[0], &given[1],
                          &given[2], &given[3], &given[4], &given[5], &out))
        return NULL;
    Taps columns, rows;
    Work work;
    void *block;
    if (height < 1 || width < 1 || size < 1 || size % 32 || pixels.len != 4 * height * width ||
        out.len != 3 * size * size || !is_taps(given, size, width, &columns) ||
        !is_taps(given + 3, size, height, &rows))
        PyErr_SetString(PyExc_ValueError, "buffers do not fit the sizes");
    else if (!(block = make_work(columns, rows, width, size, &work)))
        PyErr_NoMemory();
    else {
        Py_BEGIN_ALLOW_THREADS;
        resample(pixels.buf, height, width, columns, rows, size, work, out.buf);
        Py_END_ALLOW_THREADS;
        PyMem_RawFree(block);
    }
    PyBuffer_Release(&pixels);
    PyBuffer_Release(&out);
    for (int i = 0; i < 6; i++)
        PyBuffer_Release(&given[i]);
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {{"resample", call, METH_VARARGS, about}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_resample", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__resample(void)
{
    if (!__builtin_cpu_supports("avx2")) {
        PyErr_SetString(PyExc_ImportError, "the processor has no AVX2");
        return NULL;
    }
    return PyModule_Create(&definition);
}
