/* The inner loops of pipeline/resize.py: a picture resized by weights that are given, first each row, then each column.

   As Pillow does it, so that the result is Pillow's bit for bit: a weight is a whole multiple of 2^-22, and the sum is
   rounded to 8 bits after each of the two passes. Eight sums at a time, in a third of the time. Needs a processor with
   AVX2; without one the import fails, and Pillow does the work. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define AVX2 __attribute__((target("avx2")))
#define BITS 22
#define HALF (1 << (BITS - 1))

/* Which lines make a line of the result: `count` of them from `start` on, and their weights in a row of `width`. */
typedef struct {
    const int32_t *start, *count, *weight;
    Py_ssize_t width;
} Taps;

/* One row of pixels of four bytes -> `size` of them. Two pixels a step. */
AVX2 static void across(const uint8_t *row, Taps taps, Py_ssize_t size, uint8_t *out)
{
    const __m256i one_for_each = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
    for (Py_ssize_t x = 0; x < size; x++) {
        const uint8_t *pixels = row + 4 * (Py_ssize_t)taps.start[x];
        const int32_t *weight = taps.weight + x * taps.width;
        int32_t t = 0, value;
        __m256i pair = _mm256_setzero_si256();
        for (; t + 2 <= taps.count[x]; t += 2) {
            __m256i values = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(pixels + 4 * t)));
            __m256i weights = _mm256_castsi128_si256(_mm_loadl_epi64((const __m128i *)(weight + t)));
            weights = _mm256_permutevar8x32_epi32(weights, one_for_each);
            pair = _mm256_add_epi32(pair, _mm256_mullo_epi32(values, weights));
        }
        __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(pair), _mm256_extracti128_si256(pair, 1));
        if (t < taps.count[x]) {
            memcpy(&value, pixels + 4 * t, 4);
            __m128i values = _mm_cvtepu8_epi32(_mm_cvtsi32_si128(value));
            sum = _mm_add_epi32(sum, _mm_mullo_epi32(values, _mm_set1_epi32(weight[t])));
        }
        sum = _mm_srai_epi32(_mm_add_epi32(sum, _mm_set1_epi32(HALF)), BITS);
        sum = _mm_packs_epi32(sum, sum);
        value = _mm_cvtsi128_si32(_mm_packus_epi16(sum, sum)); /* clipped to 0..255 */
        memcpy(out + 4 * x, &value, 4);
    }
}

/* One row of pixels of four bytes -> a row of each of three planes. */
AVX2 static void apart(const uint8_t *restrict row, Py_ssize_t size, uint8_t *restrict r, uint8_t *restrict g,
                       uint8_t *restrict b)
{
    for (Py_ssize_t x = 0; x < size; x++) {
        r[x] = row[4 * x];
        g[x] = row[4 * x + 1];
        b[x] = row[4 * x + 2];
    }
}

/* `count` rows of `size` bytes, one below the other -> one row. `size` is a multiple of 32. */
AVX2 static void down(const uint8_t *rows, Py_ssize_t size, int32_t count, const int32_t *weight, uint8_t *out)
{
    const __m256i in_order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7), half = _mm256_set1_epi32(HALF);
    for (Py_ssize_t x = 0; x < size; x += 32) {
        __m256i sums[4] = {half, half, half, half};
        for (int32_t t = 0; t < count; t++) {
            const uint8_t *row = rows + t * size + x;
            __m256i times = _mm256_set1_epi32(weight[t]);
            for (int i = 0; i < 4; i++) {
                __m256i values = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(row + 8 * i)));
                sums[i] = _mm256_add_epi32(sums[i], _mm256_mullo_epi32(values, times));
            }
        }
        for (int i = 0; i < 4; i++)
            sums[i] = _mm256_srai_epi32(sums[i], BITS);
        __m256i low = _mm256_packs_epi32(sums[0], sums[1]), high = _mm256_packs_epi32(sums[2], sums[3]);
        __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(low, high), in_order); /* clipped to 0..255 */
        _mm256_storeu_si256((__m256i *)(out + x), bytes);
    }
}

static void resample(const uint8_t *pixels, Py_ssize_t height, Py_ssize_t width, Taps columns, Taps rows,
                     Py_ssize_t size, uint8_t *line, uint8_t *planes, uint8_t *out)
{
    for (Py_ssize_t y = 0; y < height; y++) {
        const uint8_t *row = pixels + 4 * y * width;
        uint8_t *own = planes + y * size;
        if (width != size) {
            across(row, columns, size, line);
            row = line;
        }
        apart(row, size, own, own + height * size, own + 2 * height * size);
    }
    for (int plane = 0; plane < 3; plane++)
        for (Py_ssize_t y = 0; y < size; y++)
            down(planes + (plane * height + rows.start[y]) * size, size, rows.count[y], rows.weight + y * rows.width,
                 out + (plane * size + y) * size);
}

/* Whether start, count and weights of int32 say how `size` lines are made of `length`. */
static int is_taps(const Py_buffer *given, Py_ssize_t size, Py_ssize_t length, Taps *taps)
{
    if (given[0].len != 4 * size || given[1].len != 4 * size || given[2].len % (4 * size))
        return 0;
    *taps = (Taps){given[0].buf, given[1].buf, given[2].buf, given[2].len / (4 * size)};
    for (Py_ssize_t i = 0; i < size; i++)
        if (taps->start[i] < 0 || taps->count[i] < 1 || taps->count[i] > taps->width ||
            taps->start[i] > length - taps->count[i])
            return 0;
    return 1;
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
    uint8_t *work = NULL;
    if (height < 1 || width < 1 || size < 1 || size % 32 || pixels.len != 4 * height * width ||
        out.len != 3 * size * size || !is_taps(given, size, width, &columns) ||
        !is_taps(given + 3, size, height, &rows))
        PyErr_SetString(PyExc_ValueError, "buffers do not fit the sizes");
    else if (!(work = PyMem_RawMalloc(4 * size + 3 * height * size)))
        PyErr_NoMemory();
    else {
        Py_BEGIN_ALLOW_THREADS;
        resample(pixels.buf, height, width, columns, rows, size, work, work + 4 * size, out.buf);
        Py_END_ALLOW_THREADS;
        PyMem_RawFree(work);
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
