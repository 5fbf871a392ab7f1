/* The inner loops of pipeline/cropped.py and pipeline/resize.py for masks: run lengths into the rectangle around their
   object, a mask's values at the crossings of rows and columns, and
   the pixels in each cell of a grid.

   Run lengths are COCO's: lengths of off, on, off, ..., column by column. numpy does the same where this is not
   compiled, with the same result. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

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
             ends[count - 1] != (int64_t)height * width)
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

/* Set the result's pixels that are set in a mask at the crossings of `rows` with columns `first`, first + 1, ...

   Eight columns at a time: few enough to stay in the cache, and one byte of the result where it is packed. A step from
   row to row in `pixels` is `down`, from column to column `across`. */
static void crossings(const uint8_t *pixels, Py_ssize_t down, Py_ssize_t across, const int32_t *rows,
                      Py_ssize_t height, const int32_t *columns, Py_ssize_t width, Out out, Py_ssize_t first)
{
    for (Py_ssize_t j = 0, part; j < width; j += part) {
        Py_ssize_t place = first + j;
        const uint8_t *from[8];
        part = 8 - place % 8 < width - j ? 8 - place % 8 : width - j;
        for (Py_ssize_t k = 0; k < part; k++)
            from[k] = pixels + columns[j + k] * across;
        uint8_t *to = out.start + (out.packed ? place / 8 : place);
        for (Py_ssize_t i = 0; i < height; i++, to += out.stride) {
            Py_ssize_t row = rows[i] * down;
            if (out.packed) {
                int bits = 0;
                for (Py_ssize_t k = 0; k < part; k++)
                    bits = bits << 1 | from[k][row];
                *to |= bits << (8 - place % 8 - part);
            } else
                for (Py_ssize_t k = 0; k < part; k++)
                    to[k] = from[k][row];
        }
    }
}

static int inside(const Py_buffer *lines, Py_ssize_t length)
{
    const int32_t *line = lines->buf;
    if (lines->len % 4)
        return 0;
    for (Py_ssize_t i = 0; i < lines->len / 4; i++)
        if (line[i] < 0 || line[i] >= length)
            return 0;
    return 1;
}

PyDoc_STRVAR(about_sample,
             "sample(pixels, height, width, by_columns, rows, columns, out, size, packed, top, left)\n\n"
             "Copy the values of (height, width) bytes, 0 or 1, at the crossings of rows and columns, int32, into `out`\n"
             "from its row `top` and column `left` on: `size` columns wide, all 0, a byte or a bit per pixel.");

static PyObject *sample(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    Py_buffer pixels, rows, columns, out;
    Py_ssize_t height, width, size, top, left;
    int by_columns, packed;
    if (!PyArg_ParseTuple(arguments, "y*nnpy*y*w*npnn", &pixels, &height, &width, &by_columns, &rows, &columns, &out,
                          &size, &packed, &top, &left))
        return NULL;
    Py_ssize_t high = rows.len / 4, wide = columns.len / 4, stride = packed ? size / 8 : size;
    if (height < 0 || width < 0 || pixels.len != height * width || !inside(&rows, height) ||
        !inside(&columns, width) || top < 0 || left < 0 || size < 1 || left + wide > size || (packed && size % 8) ||
        (top + high) * stride > out.len)
        PyErr_SetString(PyExc_ValueError, "buffers do not fit the sizes");
    else {
        Out result = {(uint8_t *)out.buf + top * stride, stride, packed};
        Py_BEGIN_ALLOW_THREADS;
        crossings(pixels.buf, by_columns ? 1 : width, by_columns ? height : 1, rows.buf, high, columns.buf, wide,
                  result, left);
        Py_END_ALLOW_THREADS;
    }
    PyBuffer_Release(&pixels);
    PyBuffer_Release(&rows);
    PyBuffer_Release(&columns);
    PyBuffer_Release(&out);
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(about_count, "count(pixels, height, width, by_columns, top, bottom, left, right, out)\n\n"
                          "Count the pixels, 0 or 1, in each cell of a grid: cell (i, j) has the rows from top[i] up to\n"
                          "bottom[i] and the columns from left[j] up to right[j], int32; `out` gets int32.");

static PyObject *count(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    Py_buffer pixels, lines[4], out;
    Py_ssize_t height, width;
    int by_columns;
    if (!PyArg_ParseTuple(arguments, "y*nnpy*y*y*y*w*", &pixels, &height, &width, &by_columns, &lines[0], &lines[1],
                          &lines[2], &lines[3], &out))
        return NULL;
    Py_ssize_t high = lines[0].len / 4, wide = lines[2].len / 4;
    int fits = height >= 0 && width >= 0 && pixels.len == height * width && lines[1].len == lines[0].len &&
               lines[3].len == lines[2].len && out.len == 4 * high * wide;
    for (int i = 0; i < 4; i++)
        fits = fits && inside(&lines[i], 1 + (i < 2 ? height : width));
    if (!fits)
        PyErr_SetString(PyExc_ValueError, "buffers do not fit the sizes");
    else {
        const int32_t *top = lines[0].buf, *bottom = lines[1].buf, *left = lines[2].buf, *right = lines[3].buf;
        int32_t *counts = out.buf;
        Py_BEGIN_ALLOW_THREADS;
        for (Py_ssize_t i = 0; i < high; i++)
            for (Py_ssize_t j = 0; j < wide; j++) {
                int32_t sum = 0;
                Py_ssize_t first = by_columns ? left[j] : top[i], end = by_columns ? right[j] : bottom[i];
                Py_ssize_t from = by_columns ? top[i] : left[j], to = by_columns ? bottom[i] : right[j];
                for (Py_ssize_t line = first; line < end; line++) {
                    const uint8_t *row = (const uint8_t *)pixels.buf + line * (by_columns ? height : width);
                    for (Py_ssize_t x = from; x < to; x++)
                        sum += row[x];
                }
                counts[i * wide + j] = sum;
            }
        Py_END_ALLOW_THREADS;
    }
    PyBuffer_Release(&pixels);
    for (int i = 0; i < 4; i++)
        PyBuffer_Release(&lines[i]);
    PyBuffer_Release(&out);
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {{"count", count, METH_VARARGS, about_count},
                                {"crop", crop, METH_VARARGS, about_crop},
                                {"sample", sample, METH_VARARGS, about_sample},
                                {NULL, NULL, 0, NULL}};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_masks", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__masks(void) { return PyModule_Create(&definition); }
