/* The inner loops of pipeline/cropped.py and pipeline/resize.py for masks: run lengths into the rectangle around their
   object, a mask's values at the crossings of rows and columns, and the pixels in each cell of a grid. And those of
   pipeline/sources/sav.py: numbers of 32 bits into bytes and into a mask.

   Run lengths are COCO's: lengths of off, on, off, ..., column by column. Where this is not compiled,
   pycocotools and numpy give the same. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#define INTERFACE 1 /* as in pipeline/compiled.py */
#if defined(__x86_64__) && defined(__GLIBC__)
#define WIDE __attribute__((target_clones("avx2", "default"))) /* twice as fast where the processor has AVX2 */
#else
#define WIDE
#endif

/* Compressed run lengths -> the places at which the runs end. Returns their number; -1 where the text is broken.
   See `_lengths` in pipeline/masks.py for the encoding. */
static Py_ssize_t parse(const uint8_t *text, Py_ssize_t length, int64_t *ends)
{
    int64_t runs[2] = {0, 0}, place = 0; /* the last run of each kind */
    Py_ssize_t count = 0;
    for (Py_ssize_t i = 0; i < length; count++) {
        int64_t value = 0;
        int group = 0, more = 1;
        for (; more; group++, i++) {
            int code = i < length ? text[i] - 48 : -1;
            if (code < 0 || code > 63 || group > 7)
                return -1;
            value |= (int64_t)(code & 31) << (5 * group);
            more = code & 32;
            if (!more && (code & 16))
                value -= (int64_t)1 << (5 * (group + 1));
        }
        if (count > 2)
            value += runs[count & 1];
        runs[count & 1] = value;
        place += value;
        if (value < 0 || place > (int64_t)1 << 48)
            return -1;
        ends[count] = place;
    }
    return count;
}

/* The rectangle around the runs that are on: top, bottom, left, right, the ends exclusive; all 0 without a pixel. */
static void around(const int64_t *ends, Py_ssize_t count, int64_t height, int64_t *box)
{
    int64_t top = height, bottom = 0, left = -1, right = 0;
    for (Py_ssize_t i = 1; i < count; i += 2) {
        int64_t first = ends[i - 1], last = ends[i] - 1;
        if (last < first)
            continue;
        int64_t column = first / height, end = last / height;
        if (left < 0)
            left = column;
        right = end + 1;
        int64_t from = column == end ? first - column * height : 0;
        int64_t to = column == end ? last - column * height + 1 : height;
        if (from < top)
            top = from;
        if (to > bottom)
            bottom = to;
    }
    box[0] = left < 0 ? 0 : top;
    box[1] = bottom;
    box[2] = left < 0 ? 0 : left;
    box[3] = right;
}

/* Set the pixels of the runs that are on in `out`: columns of bottom - top pixels, one after the other, all 0. */
static void fill(const int64_t *ends, Py_ssize_t count, int64_t height, const int64_t *box, uint8_t *out)
{
    int64_t top = box[0], high = box[1] - box[0], left = box[2];
    for (Py_ssize_t i = 1; i < count; i += 2) {
        for (int64_t place = ends[i - 1], end = ends[i]; place < end;) {
            int64_t column = place / height, row = place - column * height;
            int64_t length = end - place < height - row ? end - place : height - row;
            memset(out + (column - left) * high + row - top, 1, length);
            place += length;
        }
    }
}

/* Whether `pixels` has (height, width) bytes, and its rows and columns are small enough to be counted. */
static int is_rectangle(const Py_buffer *pixels, Py_ssize_t height, Py_ssize_t width, Py_ssize_t top, Py_ssize_t left)
{
    const Py_ssize_t most = 1 << 30;
    return height >= 0 && height <= most && width >= 0 && width <= most && top >= 0 && top <= most && left >= 0 &&
           left <= most && pixels->len == height * width;
}

static uint8_t set_in[256]; /* the number of bits that are set in each byte */

PyDoc_STRVAR(about_crop, "crop(counts, height, width) -> (top, left, bottom, right, columns), or None\n\n"
                         "Decode compressed run lengths to the rectangle around their pixels: (right - left) columns\n"
                         "of (bottom - top) bytes, 0 or 1. None where they are broken, or do not fill the picture.");

static PyObject *crop(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    Py_buffer text;
    Py_ssize_t height, width, count;
    if (!PyArg_ParseTuple(arguments, "y*nn", &text, &height, &width))
        return NULL;
    PyObject *found = NULL, *columns = NULL;
    int64_t box[4];
    int64_t *ends = PyMem_RawMalloc(8 * (text.len ? text.len : 1));
    if (!ends)
        PyErr_NoMemory();
    else if (height < 1 || width < 1 || (count = parse(text.buf, text.len, ends)) < 1 ||
             width > ((int64_t)1 << 48) / height || ends[count - 1] != (int64_t)height * width)
        found = Py_NewRef(Py_None);
    else {
        around(ends, count, height, box);
        columns = PyByteArray_FromStringAndSize(NULL, (box[1] - box[0]) * (box[3] - box[2]));
        if (columns) {
            uint8_t *out = (uint8_t *)PyByteArray_AS_STRING(columns);
            Py_ssize_t size = PyByteArray_GET_SIZE(columns);
            Py_BEGIN_ALLOW_THREADS;
            memset(out, 0, size);
            fill(ends, count, height, box, out);
            Py_END_ALLOW_THREADS;
            found = Py_BuildValue("LLLLN", box[0], box[2], box[1], box[3], columns);
        }
    }
    PyMem_RawFree(ends);
    PyBuffer_Release(&text);
    return found;
}

/* The result of `sample`: a byte or a bit per pixel, the first bit the highest; rows `stride` bytes apart. */
typedef struct {
    uint8_t *start;
    Py_ssize_t stride;
    int packed;
} Out;

/* `count` lines of which the first is the result's line `first`: those of a list that meet a rectangle. */
typedef struct {
    const int32_t *line;
    Py_ssize_t count, first;
    int32_t start; /* of the rectangle */
} Lines;

/* The lines, in a list that ascends, from `start` up to `start + length`. */
static Lines meeting(const Py_buffer *list, Py_ssize_t start, Py_ssize_t length)
{
    const int32_t *line = list->buf;
    Py_ssize_t count = list->len / 4, first = 0, end;
    while (first < count && line[first] < start)
        first++;
    for (end = first; end < count && line[end] >= start && line[end] < start + length;)
        end++;
    return (Lines){line + first, end - first, first, start};
}

/* The values of up to eight columns in a row: the first in the highest bit of `part` bits. */
static inline int bits_of(const uint8_t *const *from, Py_ssize_t row, int part)
{
    int bits = 0;
    for (int k = 0; k < part; k++)
        bits |= (from[k][row] != 0) << (part - 1 - k);
    return bits;
}

/* Set the result's pixels that are set in a mask at the crossings of `rows` with `columns`; return their number.

   Eight columns at a time: few enough to stay in the cache, and one byte of the result where it is packed. A step from
   row to row in `pixels` is `down`, from column to column `across`. */
static Py_ssize_t crossings(const uint8_t *pixels, Py_ssize_t down, Py_ssize_t across, Lines rows, Lines columns,
                            Out out)
{
    Py_ssize_t total = 0;
    for (Py_ssize_t j = 0, part; j < columns.count; j += part) {
        Py_ssize_t place = columns.first + j;
        const uint8_t *from[8];
        part = 8 - place % 8 < columns.count - j ? 8 - place % 8 : columns.count - j;
        for (Py_ssize_t k = 0; k < part; k++)
            from[k] = pixels + (columns.line[j + k] - columns.start) * across;
        uint8_t *to = out.start + rows.first * out.stride + (out.packed ? place / 8 : place);
        for (Py_ssize_t i = 0; i < rows.count; i++, to += out.stride) {
            Py_ssize_t row = (rows.line[i] - rows.start) * down;
            int bits = part == 8 ? bits_of(from, row, 8) : bits_of(from, row, (int)part);
            total += set_in[bits];
            if (out.packed)
                *to |= bits << (8 - place % 8 - part);
            else
                for (Py_ssize_t k = 0; k < part; k++)
                    to[k] = from[k][row] != 0;
        }
    }
    return total;
}

PyDoc_STRVAR(about_sample,
             "sample(pixels, height, width, by_columns, top, left, rows, columns, out, size, packed) -> int\n\n"
             "Copy a mask's values at the crossings of rows and columns into `out`, all 0: `size` columns, a byte or a\n"
             "bit per pixel. Outside (height, width) bytes, 0 or 1, whose first is in row `top` and column `left`, the\n"
             "mask is 0. Rows and columns, int32, ascend. Returns the number of values that are 1.");

static PyObject *sample(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    Py_buffer pixels, rows, columns, out;
    Py_ssize_t height, width, size, top, left, total = 0;
    int by_columns, packed;
    if (!PyArg_ParseTuple(arguments, "y*nnpnny*y*w*np", &pixels, &height, &width, &by_columns, &top, &left, &rows,
                          &columns, &out, &size, &packed))
        return NULL;
    Py_ssize_t stride = packed ? size / 8 : size;
    int fits = is_rectangle(&pixels, height, width, top, left) && size > 0 && columns.len == 4 * size &&
               rows.len % 4 == 0 && (!packed || size % 8 == 0) && out.len == rows.len / 4 * stride;
    if (!fits)
        PyErr_SetString(PyExc_ValueError, "buffers do not fit the sizes");
    else {
        Lines down = meeting(&rows, top, height), across = meeting(&columns, left, width);
        Py_BEGIN_ALLOW_THREADS;
        total = crossings(pixels.buf, by_columns ? 1 : width, by_columns ? height : 1, down, across,
                          (Out){out.buf, stride, packed});
        Py_END_ALLOW_THREADS;
    }
    PyBuffer_Release(&pixels);
    PyBuffer_Release(&rows);
    PyBuffer_Release(&columns);
    PyBuffer_Release(&out);
    return fits ? PyLong_FromSsize_t(total) : NULL;
}

/* The part of edges of a mask that lies in a rectangle of `length` lines from `start` on. */
static int32_t inside(int32_t edge, Py_ssize_t start, Py_ssize_t length)
{
    return (int32_t)(edge < start ? 0 : edge - start < length ? edge - start : length);
}

PyDoc_STRVAR(about_count, "count(pixels, height, width, by_columns, top, left, up, down, before, after, out)\n\n"
                          "Count a mask's pixels in each cell of a grid: cell (i, j) has the rows from up[i] to down[i]\n"
                          "and the columns from before[j] to after[j], the ends exclusive, int32. `out` gets int32. The\n"
                          "mask as in `sample`.");

static PyObject *count(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    Py_buffer pixels, lines[4], out;
    Py_ssize_t height, width, top, left;
    int by_columns;
    if (!PyArg_ParseTuple(arguments, "y*nnpnny*y*y*y*w*", &pixels, &height, &width, &by_columns, &top, &left,
                          &lines[0], &lines[1], &lines[2], &lines[3], &out))
        return NULL;
    Py_ssize_t high = lines[0].len / 4, wide = lines[2].len / 4;
    int fits = is_rectangle(&pixels, height, width, top, left) && lines[0].len % 4 == 0 && lines[2].len % 4 == 0 &&
               lines[1].len == lines[0].len && lines[3].len == lines[2].len && out.len == 4 * high * wide;
    if (!fits)
        PyErr_SetString(PyExc_ValueError, "buffers do not fit the sizes");
    else {
        const int32_t *up = lines[0].buf, *down = lines[1].buf, *before = lines[2].buf, *after = lines[3].buf;
        int32_t *counts = out.buf;
        Py_ssize_t length = by_columns ? height : width;
        Py_BEGIN_ALLOW_THREADS;
        for (Py_ssize_t i = 0; i < high; i++) {
            int32_t rows[2] = {inside(up[i], top, height), inside(down[i], top, height)};
            for (Py_ssize_t j = 0; j < wide; j++) {
                int32_t columns[2] = {inside(before[j], left, width), inside(after[j], left, width)}, sum = 0;
                const int32_t *outer = by_columns ? columns : rows, *inner = by_columns ? rows : columns;
                for (Py_ssize_t line = outer[0]; line < outer[1]; line++) {
                    const uint8_t *row = (const uint8_t *)pixels.buf + line * length;
                    for (Py_ssize_t x = inner[0]; x < inner[1]; x++)
                        sum += row[x] != 0;
                }
                counts[i * wide + j] = sum;
            }
        }
        Py_END_ALLOW_THREADS;
    }
    PyBuffer_Release(&pixels);
    for (int i = 0; i < 4; i++)
        PyBuffer_Release(&lines[i]);
    PyBuffer_Release(&out);
    if (!fits)
        return NULL;
    Py_RETURN_NONE;
}

/* Round to bytes, half to even. Returns the bits of the largest value, 0 where none is above 0, and -1 where one is
   outside of low..high, or no number. */
WIDE static int32_t round_all(const float *values, Py_ssize_t count, float low, float high, uint8_t *out)
{
    int32_t most = 0, outside = 0;
    for (Py_ssize_t i = 0; i < count; i++) {
        float value = values[i], moved = value + 0x1.8p23f; /* there floats are whole numbers */
        int32_t bits, whole;
        memcpy(&bits, &value, 4); /* above 0 these ascend with the value */
        memcpy(&whole, &moved, 4);
        most = bits > most ? bits : most;
        outside |= !((value >= low) & (value <= high));
        out[i] = (uint8_t)whole;
    }
    return outside ? -1 : most;
}

PyDoc_STRVAR(about_rounded, "rounded(values, low, high, out) -> float, or None\n\n"
                            "Round float32 to uint8, half to even. Returns the largest value, 0 where none is above 0.\n"
                            "None where one is not in low..high, within 0..255 once rounded.");

static PyObject *rounded(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    Py_buffer values, out;
    float low, high, largest;
    int32_t most = -1;
    if (!PyArg_ParseTuple(arguments, "y*ffw*", &values, &low, &high, &out))
        return NULL;
    int fits = values.len == 4 * out.len;
    if (!fits)
        PyErr_SetString(PyExc_ValueError, "buffers do not fit the sizes");
    else {
        Py_BEGIN_ALLOW_THREADS;
        most = round_all(values.buf, out.len, low, high, out.buf);
        Py_END_ALLOW_THREADS;
    }
    PyBuffer_Release(&values);
    PyBuffer_Release(&out);
    memcpy(&largest, &most, 4);
    return !fits ? NULL : most < 0 ? Py_NewRef(Py_None) : PyFloat_FromDouble(largest);
}

/* 1 where a value is above `half`; returns how many are between `low` and `high`. */
WIDE static int32_t cut_all(const float *values, Py_ssize_t count, float low, float half, float high, uint8_t *out)
{
    int32_t between = 0;
    for (Py_ssize_t i = 0; i < count; i++) {
        between += (values[i] > low) & (values[i] < high);
        out[i] = values[i] > half;
    }
    return between;
}

PyDoc_STRVAR(about_cut, "cut(values, low, half, high, out) -> int\n\n"
                        "Set bytes to whether each float32 is above `half`; return how many are between low and high.");

static PyObject *cut(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    Py_buffer values, out;
    float low, half, high;
    int32_t between = 0;
    if (!PyArg_ParseTuple(arguments, "y*fffw*", &values, &low, &half, &high, &out))
        return NULL;
    int fits = values.len == 4 * out.len && out.len <= INT32_MAX;
    if (!fits)
        PyErr_SetString(PyExc_ValueError, "buffers do not fit the sizes");
    else {
        Py_BEGIN_ALLOW_THREADS;
        between = cut_all(values.buf, out.len, low, half, high, out.buf);
        Py_END_ALLOW_THREADS;
    }
    PyBuffer_Release(&values);
    PyBuffer_Release(&out);
    return fits ? PyLong_FromLong(between) : NULL;
}

static PyMethodDef methods[] = {{"count", count, METH_VARARGS, about_count},
                                {"crop", crop, METH_VARARGS, about_crop},
                                {"cut", cut, METH_VARARGS, about_cut},
                                {"rounded", rounded, METH_VARARGS, about_rounded},
                                {"sample", sample, METH_VARARGS, about_sample},
                                {NULL, NULL, 0, NULL}};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_masks", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__masks(void)
{
    for (int byte = 1; byte < 256; byte++)
        set_in[byte] = byte % 2 + set_in[byte / 2];
    PyObject *module = PyModule_Create(&definition);
    if (module && PyModule_AddIntConstant(module, "INTERFACE", INTERFACE))
        Py_CLEAR(module);
    return module;
}
