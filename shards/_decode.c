/* The loops of reading: many members decoded in one call, without the interpreter's lock.

   A job that these loops are not sure about, such as a JPEG or a damaged member, is left undone. Its caller then does
   it in Python (`shards/codec.py`), which says what is wrong. Sound members give the same bits either way; of a damaged
   zstd frame two versions of zstd may make different ones, which the CRC-32 of the sample tells. Nothing is read or
   written before the lengths of both buffers were checked.

   zstd is the shared library of the system, which needs no header files to compile. Where it is missing, jobs that need
   it are left undone. There are no floating-point operations: normalised values are looked up in a table.

   What is written once and not read again here goes past the processor's cache where SSE2 allows it (every x86-64). That
   saves reading the memory that is overwritten, and leaves in the cache what Python needs next. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <dlfcn.h>
#include <stdint.h>
#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#define BLOCK 512
#define INTERFACE 4 /* that of shards/compiled.py, which leaves a module with another one alone */
#define MAX_OBJECTS 4096
#define LINE 64 /* bytes of packed bits that are unpacked at a time */
#define LARGE (1 << 16) /* from this many bytes on, writes go past the cache */

static uint64_t pixels_of[256]; /* the eight bits of each byte value as eight bytes, the highest bit first */

/* ---- writing ---- */

#ifdef __SSE2__
/* Whether to write `size` bytes at `out` past the cache. */
static int is_streamed(const void *out, size_t size)
{
    return size >= LARGE && (uintptr_t)out % 16 == 0;
}
#endif

static void copy(uint8_t *restrict out, const uint8_t *restrict data, size_t size)
{
#ifdef __SSE2__
    if (is_streamed(out, size)) {
        for (; size >= 64; out += 64, data += 64, size -= 64)
            for (int k = 0; k < 64; k += 16)
                _mm_stream_si128((__m128i *)(out + k), _mm_loadu_si128((const __m128i *)(data + k)));
        _mm_sfence();
    }
#endif
    memcpy(out, data, size);
}

static void zero(uint8_t *out, size_t size)
{
#ifdef __SSE2__
    if (is_streamed(out, size)) {
        for (; size >= 16; out += 16, size -= 16)
            _mm_stream_si128((__m128i *)out, _mm_setzero_si128());
        _mm_sfence();
    }
#endif
    memset(out, 0, size);
}

/* ---- zstd ---- */

static void *(*create_context)(void);
static size_t (*decompress)(void *, void *, size_t, const void *, size_t);
static unsigned long long (*content_size)(const void *, size_t);
static size_t (*frame_size)(const void *, size_t);
static int has_zstd;

static void load_zstd(void)
{
    static const char *const names[] = {"libzstd.so.1", "libzstd.1.dylib"};
    void *library = NULL;
    for (size_t i = 0; i < sizeof names / sizeof *names && !library; i++)
        library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    if (!library)
        return;
    unsigned (*version)(void);
    *(void **)&version = dlsym(library, "ZSTD_versionNumber");
    *(void **)&create_context = dlsym(library, "ZSTD_createDCtx");
    *(void **)&decompress = dlsym(library, "ZSTD_decompressDCtx");
    *(void **)&content_size = dlsym(library, "ZSTD_getFrameContentSize");
    *(void **)&frame_size = dlsym(library, "ZSTD_findFrameCompressedSize");
    has_zstd = version && version() >= 10400 && create_context && decompress && content_size && frame_size;
}

/* What one call works with. Contexts are kept for the next call; the list is changed with the interpreter's lock. */
typedef struct Worker {
    struct Worker *next;
    void *context;
    uint8_t *scratch;
    size_t size;
} Worker;

static Worker *idle;

static Worker *take_worker(void)
{
    Worker *worker = idle;
    if (worker) {
        idle = worker->next;
        return worker;
    }
    if (!(worker = PyMem_RawCalloc(1, sizeof *worker)))
        return NULL;
    if (has_zstd && !(worker->context = create_context())) {
        PyMem_RawFree(worker);
        return NULL;
    }
    return worker;
}

static void return_worker(Worker *worker)
{
    worker->next = idle;
    idle = worker;
}

/* Memory of `size` bytes that a worker keeps; NULL where there is none. */
static uint8_t *scratch_of(Worker *worker, size_t size)
{
    if (worker->size < size) {
        PyMem_RawFree(worker->scratch);
        worker->scratch = PyMem_RawMalloc(size);
        worker->size = worker->scratch ? size : 0;
    }
    return worker->scratch;
}

/* Whether a whole frame's window is over 128 MiB, which Python's decoder refuses. */
static int is_wide(const uint8_t *frame)
{
    const uint8_t single_segment = 0x20; /* of the frame header's descriptor: there is no window */
    return !(frame[4] & single_segment) && frame[5] > (27 - 10) << 3;
}

/* Whether `data` is one zstd frame that says it holds `size` bytes, and does. Never writes more than these. */
static int unzip(Worker *worker, const uint8_t *data, size_t length, uint8_t *out, size_t size)
{
    static const uint8_t magic[4] = {0x28, 0xb5, 0x2f, 0xfd};
    return has_zstd && length > 4 && !memcmp(data, magic, 4) && content_size(data, length) == size &&
           frame_size(data, length) == length && !is_wide(data) &&
           decompress(worker->context, out, size, data, length) == size;
}

/* ---- pictures ---- */

/* An empty skippable frame, which a picture of the codec `gradient` begins with: shards.codec.GRADIENT. */
static const uint8_t gradient[8] = {0x52, 0x2a, 0x4d, 0x18};

/* A row of each plane, with the row above in each plane. */
static void undo_row(uint8_t *restrict r, uint8_t *restrict g, uint8_t *restrict b, const uint8_t *restrict above_r,
                     const uint8_t *restrict above_g, const uint8_t *restrict above_b, size_t side)
{
    for (size_t x = 0; x < side; x++) {
        uint8_t green = g[x];
        r[x] += green + above_r[x];
        b[x] += green + above_b[x];
        g[x] = green + above_g[x];
    }
}

/* Planes (R - G, G, B - G), each row minus the row above -> (R, G, B), in place. The sums are linear modulo 256. */
static void undo_up(uint8_t *planes, size_t side)
{
    uint8_t *r = planes, *g = r + side * side, *b = g + side * side;
    for (size_t x = 0; x < side; x++) {
        r[x] += g[x];
        b[x] += g[x];
    }
    for (size_t y = 1; y < side; y++, r += side, g += side, b += side)
        undo_row(r + side, g + side, b + side, r, g, b, side);
}

#ifdef __SSE2__
/* Sixteen bytes -> their sums up to each, plus `left`, which holds the sum of all before in each byte and is raised. */
static inline __m128i sums_up_to(__m128i v, __m128i *left)
{
    v = _mm_add_epi8(v, _mm_slli_si128(v, 1));
    v = _mm_add_epi8(v, _mm_slli_si128(v, 2));
    v = _mm_add_epi8(v, _mm_slli_si128(v, 4));
    v = _mm_add_epi8(v, _mm_slli_si128(v, 8));
    __m128i last = _mm_unpackhi_epi8(v, v); /* the last byte twice in the last word */
    last = _mm_shuffle_epi32(_mm_shufflehi_epi16(last, 0xff), 0xff);
    v = _mm_add_epi8(v, *left);
    *left = _mm_add_epi8(*left, last);
    return v;
}
#endif

/* Planes (R - G, G, B - G) as differences to the left of the differences to the row above -> (R, G, B).

   All sums are linear modulo 256. `out` may not overlap `planes`; it is written past the cache if `is_last`, where
   nothing here reads it again. `above` has room for a row of each plane. */
static void undo_gradient(const uint8_t *restrict planes, size_t side, uint8_t *restrict above, uint8_t *restrict out,
                          int is_last)
{
    const size_t area = side * side;
#ifdef __SSE2__
    int past_cache = is_last && is_streamed(out, area);
#endif
    memset(above, 0, 3 * side);
    for (size_t y = 0; y < side; y++, planes += side, out += side) {
        uint8_t left[3] = {0, 0, 0};
        size_t x = 0;
#ifdef __SSE2__
        if (side % 16 == 0) {
            __m128i sums[3] = {_mm_setzero_si128(), _mm_setzero_si128(), _mm_setzero_si128()}, v[3];
            for (; x < side; x += 16) {
                for (int p = 0; p < 3; p++)
                    v[p] = sums_up_to(_mm_loadu_si128((const __m128i *)(planes + p * area + x)), &sums[p]);
                v[0] = _mm_add_epi8(v[0], v[1]);
                v[2] = _mm_add_epi8(v[2], v[1]);
                for (int p = 0; p < 3; p++) {
                    __m128i *row = (__m128i *)(above + p * side + x);
                    v[p] = _mm_add_epi8(v[p], _mm_loadu_si128(row));
                    _mm_storeu_si128(row, v[p]);
                    __m128i *to = (__m128i *)(out + p * area + x);
                    if (past_cache)
                        _mm_stream_si128(to, v[p]);
                    else
                        _mm_storeu_si128(to, v[p]);
                }
            }
            continue;
        }
#endif
        for (; x < side; x++) {
            for (int p = 0; p < 3; p++)
                left[p] += planes[p * area + x];
            out[x] = above[x] += left[0] + left[1];
            out[area + x] = above[side + x] += left[1];
            out[2 * area + x] = above[2 * side + x] += left[2] + left[1];
        }
    }
#ifdef __SSE2__
    _mm_sfence();
#endif
}

/* Each byte of a plane -> its value in a table of 256. */
static void look_up(const uint8_t *restrict plane, size_t area, const float *restrict table, float *restrict out)
{
    size_t i = 0;
#ifdef __SSE2__
    if (is_streamed(out, 4 * area)) {
        for (; i + 8 <= area; i += 8) {
            uint64_t v;
            memcpy(&v, plane + i, 8);
            _mm_stream_ps(out + i, _mm_setr_ps(table[v & 255], table[v >> 8 & 255], table[v >> 16 & 255],
                                               table[v >> 24 & 255]));
            _mm_stream_ps(out + i + 4, _mm_setr_ps(table[v >> 32 & 255], table[v >> 40 & 255], table[v >> 48 & 255],
                                                   table[v >> 56]));
        }
        _mm_sfence();
    }
#endif
    for (; i < area; i++)
        out[i] = table[plane[i]];
}

/* ---- jobs ---- */

enum Kind { PICTURE, PACKED, MASK, PACKED_UNION, MASK_UNION, CELLS, COPY, KINDS };

typedef struct {
    enum Kind kind;
    Py_buffer data, out;
    Py_ssize_t number; /* side of a picture, or position of an object */
    const uint8_t *header;
    Py_ssize_t header_length;
    const float *table; /* (3, 256) */
} Job;

static int begins_with_header(const Job *job, size_t content)
{
    return job->header && (size_t)job->data.len == job->header_length + content &&
           !memcmp(job->data.buf, job->header, job->header_length);
}

static int begins_with_gradient(const Job *job)
{
    return (size_t)job->data.len > sizeof gradient && !memcmp(job->data.buf, gradient, sizeof gradient);
}

static int do_picture(const Job *job, Worker *worker)
{
    size_t side = job->number, size = 3 * side * side;
    const uint8_t *planes = job->data.buf;
    uint8_t *decoded = job->out.buf;
    if (side < 1 || side > 1 << 14 || (size_t)job->out.len != (job->table ? 4 : 1) * size)
        return 0;
    if (begins_with_header(job, size))
        planes += job->header_length;
    else if (begins_with_gradient(job)) {
        uint8_t *scratch = scratch_of(worker, (job->table ? 2 : 1) * size + 3 * side);
        if (!scratch || !unzip(worker, planes + sizeof gradient, job->data.len - sizeof gradient, scratch, size))
            return 0;
        if (job->table)
            decoded = scratch + size + 3 * side;
        undo_gradient(scratch, side, scratch + size, decoded, !job->table);
        planes = decoded;
    } else {
        if (job->table && !(decoded = scratch_of(worker, size)))
            return 0;
        if (!unzip(worker, planes, job->data.len, decoded, size))
            return 0;
        undo_up(decoded, side);
        planes = decoded;
    }
    if (job->table)
        for (int plane = 0; plane < 3; plane++, planes += side * side)
            look_up(planes, side * side, job->table + 256 * plane, (float *)job->out.buf + plane * side * side);
    else if (planes != decoded)
        copy(decoded, planes, size);
    return 1;
}

static size_t number_at(const uint8_t *data)
{
    return data[0] | (size_t)data[1] << 8 | (size_t)data[2] << 16 | (size_t)data[3] << 24;
}

/* Packed bits -> a byte a pixel. Most of them are zeros in most masks. */
static void unpack(const uint8_t *bits, size_t size, uint8_t *out)
{
    static const uint8_t zeros[LINE];
    size_t written = 0;
    for (size_t begin = 0; begin < size; begin += LINE) {
        size_t length = size - begin < LINE ? size - begin : LINE;
        if (!memcmp(bits + begin, zeros, length))
            continue;
        zero(out + 8 * written, 8 * (begin - written));
        for (size_t i = begin; i < begin + length; i++)
            memcpy(out + 8 * i, &pixels_of[bits[i]], 8);
        written = begin + length;
    }
    zero(out + 8 * written, 8 * (size - written));
}

/* Set the pixels in `out` whose bits are set. */
static void unite(const uint8_t *bits, size_t size, uint8_t *out)
{
    static const uint8_t zeros[LINE];
    for (size_t begin = 0; begin < size; begin += LINE) {
        size_t length = size - begin < LINE ? size - begin : LINE;
        if (!memcmp(bits + begin, zeros, length))
            continue;
        for (size_t i = begin; i < begin + length; i++) {
            uint64_t eight;
            memcpy(&eight, out + 8 * i, 8);
            eight |= pixels_of[bits[i]];
            memcpy(out + 8 * i, &eight, 8);
        }
    }
}

static int do_mask(const Job *job, Worker *worker)
{
    const uint8_t *data = job->data.buf;
    int packed = job->kind == PACKED || job->kind == PACKED_UNION;
    int united = job->kind == PACKED_UNION || job->kind == MASK_UNION;
    size_t length = job->data.len, size = packed ? job->out.len : job->out.len / 8;
    if (length < 4 || job->number < 0 || (!packed && job->out.len % 8) || !size)
        return 0;
    size_t count = number_at(data), position = job->number;
    if (count > MAX_OBJECTS || count > length / 4 - 1 || position >= count)
        return 0;
    const uint8_t *ends = data + 4, *frames = ends + 4 * count;
    length -= 4 + 4 * count;
    size_t start = position ? number_at(ends + 4 * (position - 1)) : 0, end = number_at(ends + 4 * position);
    if (number_at(ends + 4 * (count - 1)) != length || start > end || end > length)
        return 0;
    uint8_t *bits = job->kind == PACKED ? job->out.buf : scratch_of(worker, size);
    if (!bits || !unzip(worker, frames + start, end - start, bits, size))
        return 0;
    uint8_t *restrict out = job->out.buf;
    if (job->kind == MASK)
        unpack(bits, size, out);
    else if (job->kind == MASK_UNION)
        unite(bits, size, out);
    else if (united)
        for (size_t i = 0; i < size; i++)
            out[i] |= bits[i];
    return 1;
}

/* The number of objects in the header of an npy (N, G, G). */
static size_t count_in(const uint8_t *header, size_t length)
{
    const uint8_t *at = memchr(header, '(', length), *end = header + length;
    size_t count = 0;
    while (at && ++at < end && *at >= '0' && *at <= '9')
        count = 10 * count + (*at - '0');
    return count;
}

static int do_cells(const Job *job)
{
    size_t area = job->out.len;
    if (job->header_length > job->data.len || job->number < 0 || !area)
        return 0;
    size_t content = job->data.len - job->header_length;
    if (!begins_with_header(job, content) || content != area * count_in(job->header, job->header_length) ||
        (size_t)job->number >= content / area)
        return 0;
    const uint8_t *cells = (const uint8_t *)job->data.buf + job->header_length + job->number * area;
    for (size_t i = 0; i < area; i++)
        if (cells[i] > 1)
            return 0;
    memcpy(job->out.buf, cells, area);
    return 1;
}

static int do_job(const Job *job, Worker *worker)
{
    switch (job->kind) {
    case PICTURE:
        return do_picture(job, worker);
    case CELLS:
        return do_cells(job);
    case COPY: {
        const char *from = job->data.buf, *to = job->out.buf;
        if (job->data.len != job->out.len || (from < to + job->out.len && to < from + job->out.len))
            return 0;
        copy(job->out.buf, job->data.buf, job->out.len);
        return 1;
    }
    default:
        return do_mask(job, worker);
    }
}

/* Read a job's tuple but for its buffers: 0, or -1 with an exception. */
static int read_kind(PyObject *given, Job *job)
{
    memset(job, 0, sizeof *job);
    if (!PyTuple_Check(given) || PyTuple_GET_SIZE(given) < 6) {
        PyErr_SetString(PyExc_TypeError, "a job is a tuple (kind, data, out, number, header, table, ...)");
        return -1;
    }
    Py_ssize_t kind = PyLong_AsSsize_t(PyTuple_GET_ITEM(given, 0));
    job->number = PyNumber_AsSsize_t(PyTuple_GET_ITEM(given, 3), NULL);
    if (PyErr_Occurred())
        return -1;
    PyObject *header = PyTuple_GET_ITEM(given, 4), *table = PyTuple_GET_ITEM(given, 5);
    if (kind < 0 || kind >= KINDS || (header != Py_None && !PyBytes_Check(header)) ||
        (table != Py_None && (!PyBytes_Check(table) || PyBytes_GET_SIZE(table) != 3 * 256 * sizeof(float)))) {
        PyErr_SetString(PyExc_ValueError, "kind, header or table of a job");
        return -1;
    }
    job->kind = (enum Kind)kind;
    if (header != Py_None) {
        job->header = (const uint8_t *)PyBytes_AS_STRING(header);
        job->header_length = PyBytes_GET_SIZE(header);
    }
    if (table != Py_None)
        job->table = (const float *)PyBytes_AS_STRING(table);
    return 0;
}

/* Read a job's tuple: 1, or 0 where it cannot be a job of this module, or -1 with an exception. */
static int read_job(PyObject *given, Job *job)
{
    if (read_kind(given, job))
        return -1;
    if (PyObject_GetBuffer(PyTuple_GET_ITEM(given, 1), &job->data, PyBUF_SIMPLE) ||
        PyObject_GetBuffer(PyTuple_GET_ITEM(given, 2), &job->out, PyBUF_WRITABLE)) {
        PyBuffer_Release(&job->data);
        if (!PyErr_ExceptionMatches(PyExc_BufferError) && !PyErr_ExceptionMatches(PyExc_ValueError))
            return -1;
        PyErr_Clear(); /* not contiguous, or read-only: Python knows what to do, or to say */
        return 0;
    }
    return 1;
}

PyDoc_STRVAR(about_run,
             "run(jobs) -> list of the positions of those left undone\n\n"
             "A job is a tuple (kind, data, out, number, header, table, ...), with data and out contiguous buffers.");

static PyObject *run(PyObject *Py_UNUSED(module), PyObject *given)
{
    PyObject *tuple = PySequence_Tuple(given), *left = PyList_New(0); /* a tuple of its own: nobody changes it */
    Py_ssize_t count = tuple ? PyTuple_GET_SIZE(tuple) : 0, read = 0;
    Job *jobs = PyMem_RawMalloc((count + 1) * sizeof *jobs);
    int8_t *done = PyMem_RawCalloc(count + 1, 1);
    Worker *worker = take_worker();
    if (tuple && left && !(jobs && done && worker))
        PyErr_NoMemory();
    for (; !PyErr_Occurred() && read < count; read++)
        if ((done[read] = (int8_t)read_job(PyTuple_GET_ITEM(tuple, read), &jobs[read])) < 0)
            break; /* its buffers are not held */
    if (!PyErr_Occurred()) {
        Py_BEGIN_ALLOW_THREADS;
        for (Py_ssize_t i = 0; i < count; i++)
            done[i] = done[i] && do_job(&jobs[i], worker);
        Py_END_ALLOW_THREADS;
    }
    for (Py_ssize_t i = 0; i < read; i++) {
        PyBuffer_Release(&jobs[i].data);
        PyBuffer_Release(&jobs[i].out);
    }
    for (Py_ssize_t i = 0; i < count && !PyErr_Occurred(); i++) {
        if (done[i])
            continue;
        PyObject *position = PyLong_FromSsize_t(i);
        if (position)
            PyList_Append(left, position);
        Py_XDECREF(position);
    }
    if (worker)
        return_worker(worker);
    PyMem_RawFree(jobs);
    PyMem_RawFree(done);
    Py_XDECREF(tuple);
    if (PyErr_Occurred())
        Py_CLEAR(left);
    return left;
}

/* ---- rows of tensors ---- */

/* A job that is done for each row of a tensor, whose memory is `job.out`. */
typedef struct {
    Job job;
    Py_ssize_t rows, objects; /* objects of a row; 1 of a picture */
} Part;

typedef struct {
    Job job;
    Py_ssize_t row, part; /* for which it is done */
} Task;

static int read_part(PyObject *given, Part *part)
{
    if (read_kind(given, &part->job) ||
        PyObject_GetBuffer(PyTuple_GET_ITEM(given, 2), &part->job.out, PyBUF_WRITABLE | PyBUF_ND))
        return -1;
    const Py_buffer *out = &part->job.out;
    int axes = part->job.kind == PICTURE ? 1 : 2;
    if (out->ndim < axes) {
        PyBuffer_Release(&part->job.out);
        PyErr_SetString(PyExc_ValueError, "axes of a tensor");
        return -1;
    }
    part->rows = out->shape[0];
    part->objects = axes == 1 ? 1 : out->shape[1];
    return 0;
}

/* Add what a row's tuple asks for, where there is room for `room` tasks in all: 0, or -1 with an exception. */
static int add_row(PyObject *given, Py_ssize_t number, const Part *parts, Py_ssize_t count, Task *tasks, Py_ssize_t room,
                   Py_ssize_t *used)
{
    PyObject *objects, *header, *stored, *numbers;
    Py_ssize_t row;
    if (!PyArg_ParseTuple(given, "nO!OO!O!", &row, &PyList_Type, &objects, &header, &PyList_Type, &stored, &PyTuple_Type,
                          &numbers))
        return -1;
    int fits = PyTuple_GET_SIZE(numbers) == count && (header == Py_None || PyBytes_Check(header));
    for (Py_ssize_t p = 0; p < count && fits; p++) {
        Task task = {parts[p].job, number, p};
        Py_ssize_t member = PyLong_AsSsize_t(PyTuple_GET_ITEM(numbers, p));
        Py_ssize_t wanted = task.job.kind == PICTURE ? 1 : PyList_GET_SIZE(objects);
        if (member == -1) { /* nothing, or an exception */
            if (PyErr_Occurred())
                return -1;
            continue;
        }
        fits = member >= 0 && member < PyList_GET_SIZE(stored) && row >= 0 && row < parts[p].rows &&
               wanted <= parts[p].objects && wanted <= room - *used;
        if (!fits || !wanted)
            continue;
        if (PyObject_GetBuffer(PyList_GET_ITEM(stored, member), &task.job.data, PyBUF_SIMPLE))
            return -1;
        task.job.out.obj = NULL; /* the part holds it */
        task.job.out.len = parts[p].job.out.len / parts[p].rows / parts[p].objects;
        if (task.job.kind == CELLS && header != Py_None) {
            task.job.header = (const uint8_t *)PyBytes_AS_STRING(header);
            task.job.header_length = PyBytes_GET_SIZE(header);
        }
        for (Py_ssize_t k = 0; k < wanted; k++, task.job.data.obj = NULL) { /* the first task holds the data */
            task.job.out.buf = (char *)parts[p].job.out.buf + (row * parts[p].objects + k) * task.job.out.len;
            tasks[(*used)++] = task;
            if (task.job.kind != PICTURE)
                tasks[*used - 1].job.number =
                    k < PyList_GET_SIZE(objects) ? PyNumber_AsSsize_t(PyList_GET_ITEM(objects, k), NULL) : -1;
            if (PyErr_Occurred())
                return -1;
        }
    }
    if (!fits)
        PyErr_SetString(PyExc_ValueError, "a row that does not fit the tensors");
    return fits ? 0 : -1;
}

/* An upper bound of the tasks of rows; -1 with an exception. */
static Py_ssize_t count_tasks(PyObject *rows, Py_ssize_t parts)
{
    Py_ssize_t tasks = 0;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(rows); i++) {
        PyObject *row = PyTuple_GET_ITEM(rows, i);
        if (!PyTuple_Check(row) || PyTuple_GET_SIZE(row) != 5 || !PyList_Check(PyTuple_GET_ITEM(row, 1))) {
            PyErr_SetString(PyExc_TypeError, "a row is a tuple (row, objects, header, stored, numbers)");
            return -1;
        }
        tasks += parts * (PyList_GET_SIZE(PyTuple_GET_ITEM(row, 1)) + 1);
    }
    return tasks;
}

/* The (row, part) of tasks that are not done, each once. */
static PyObject *left_of(const Task *tasks, const int8_t *done, Py_ssize_t count)
{
    PyObject *left = PyList_New(0);
    const Task *last = NULL;
    for (Py_ssize_t i = 0; i < count && left; i++) {
        if (done[i] || (last && last->row == tasks[i].row && last->part == tasks[i].part))
            continue;
        last = &tasks[i];
        PyObject *pair = Py_BuildValue("(nn)", last->row, last->part);
        if (!pair || PyList_Append(left, pair))
            Py_CLEAR(left);
        Py_XDECREF(pair);
    }
    return left;
}

PyDoc_STRVAR(about_rows,
             "run_rows(parts, rows) -> list of (position in rows, number of the part) of what is left undone\n\n"
             "A part is a job (kind, None, out, number, header, table) whose out is a tensor with a picture, or the\n"
             "masks or the cells of objects, in each row. A row is a tuple (row, objects, header, stored, numbers): its\n"
             "place in the tensors; the positions of the objects that are decoded; the header of its cells; and the\n"
             "bytes of members, with the number of each part's among them; -1: the part is not decoded.");

static PyObject *run_rows(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    PyObject *given, *sequence, *left = NULL;
    if (!PyArg_ParseTuple(arguments, "O!O", &PyTuple_Type, &given, &sequence))
        return NULL;
    PyObject *rows = PySequence_Tuple(sequence); /* of its own: nobody changes it */
    Py_ssize_t count = PyTuple_GET_SIZE(given), read = 0, used = 0, room = rows ? count_tasks(rows, count) : -1;
    if (room < 0) {
        Py_XDECREF(rows);
        return NULL;
    }
    Part *parts = PyMem_RawMalloc((count + 1) * sizeof *parts);
    Task *tasks = PyMem_RawMalloc((room + 1) * sizeof *tasks);
    int8_t *done = PyMem_RawCalloc(room + 1, 1);
    Worker *worker = take_worker();
    if (!(parts && tasks && done && worker))
        PyErr_NoMemory();
    while (!PyErr_Occurred() && read < count && !read_part(PyTuple_GET_ITEM(given, read), &parts[read]))
        read++;
    for (Py_ssize_t i = 0; !PyErr_Occurred() && i < PyTuple_GET_SIZE(rows); i++)
        add_row(PyTuple_GET_ITEM(rows, i), i, parts, count, tasks, room, &used);
    if (!PyErr_Occurred()) {
        Py_BEGIN_ALLOW_THREADS;
        for (Py_ssize_t i = 0; i < used; i++)
            done[i] = (int8_t)do_job(&tasks[i].job, worker);
        Py_END_ALLOW_THREADS;
        left = left_of(tasks, done, used);
    }
    for (Py_ssize_t i = 0; i < used; i++)
        PyBuffer_Release(&tasks[i].job.data);
    for (Py_ssize_t i = 0; i < read; i++)
        PyBuffer_Release(&parts[i].job.out);
    if (worker)
        return_worker(worker);
    PyMem_RawFree(parts);
    PyMem_RawFree(tasks);
    PyMem_RawFree(done);
    Py_DECREF(rows);
    return left;
}

/* ---- headers of a tar ---- */

static unsigned sum_of(const void *bytes, Py_ssize_t count)
{
    unsigned sum = 0;
    for (Py_ssize_t i = 0; i < count; i++)
        sum += ((const uint8_t *)bytes)[i];
    return sum;
}

/* Whether the header is the blank one with this name (in two parts) and a size, which is returned, or -1.

   `sum` is that of the blank header's bytes that are the same in all headers. */
static Py_ssize_t size_of_member(const uint8_t *header, const uint8_t *blank, unsigned sum, const char *const *name,
                                 const Py_ssize_t *lengths)
{
    Py_ssize_t named = lengths[0] + lengths[1], size = 0;
    if (named > 100 || memcmp(header, name[0], lengths[0]) || memcmp(header + lengths[0], name[1], lengths[1]) ||
        memcmp(header + named, blank, 100 - named) || memcmp(header + 100, blank + 100, 24) ||
        memcmp(header + 135, blank + 135, 13) || memcmp(header + 156, blank + 156, BLOCK - 156))
        return -1;
    for (int i = 124; i < 135; i++) {
        if (header[i] < '0' || header[i] > '7')
            return -1;
        size = 8 * size + header[i] - '0';
    }
    sum += sum_of(header, 100) + sum_of(header + 124, 11);
    for (int i = 153; i >= 148; i--, sum /= 8)
        if (header[i] != '0' + sum % 8)
            return -1;
    return header[154] || header[155] != ' ' ? -1 : size;
}

/* Whether these are bytes of shards.format.KEY. */
static int is_key(const char *key, Py_ssize_t length)
{
    for (Py_ssize_t i = 0; i < length; i++)
        if (!((key[i] >= 'a' && key[i] <= 'z') || (key[i] >= 'A' && key[i] <= 'Z') ||
              (key[i] >= '0' && key[i] <= '9') || key[i] == '_' || key[i] == '-'))
            return 0;
    return length > 0 && length <= 64;
}

PyDoc_STRVAR(about_members,
             "exact_members(view, offset, size, key, rests, begins, blank) -> the members' bytes, or None\n\n"
             "As shards.archive.MappedTar.exact_members; the names are key + rest, and blank is a header without name.");

static PyObject *exact_members(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    PyObject *view, *rests, *begins, *place[2], *found = NULL;
    Py_ssize_t offset, size, lengths[2], blank_length;
    const char *names[2], *blank;
    Py_buffer tar;
    if (!PyArg_ParseTuple(arguments, "OOOy#O!O!y#", &view, &place[0], &place[1], &names[0], &lengths[0], &PyTuple_Type,
                          &rests, &PyTuple_Type, &begins, &blank, &blank_length) ||
        ((offset = PyNumber_AsSsize_t(place[0], NULL)) == -1 && PyErr_Occurred()) || /* too large a number is cut */
        ((size = PyNumber_AsSsize_t(place[1], NULL)) == -1 && PyErr_Occurred()) ||
        PyObject_GetBuffer(view, &tar, PyBUF_SIMPLE))
        return NULL;
    Py_ssize_t count = PyTuple_GET_SIZE(rests);
    int fits = blank_length == BLOCK && offset >= 0 && size >= 0 && offset <= tar.len && size <= tar.len - offset &&
               is_key(names[0], lengths[0]) && PyTuple_GET_SIZE(begins) == count;
    Py_ssize_t end = fits ? offset + size : 0;
    unsigned sum = 0; /* of the header's bytes that do not depend on name and size, its checksum counted as blanks */
    if (fits) {
        found = PyList_New(0);
        sum = sum_of(blank + 100, 24) + sum_of(blank + 135, 13) + 8 * ' ' + sum_of(blank + 156, BLOCK - 156);
    }
    for (Py_ssize_t i = 0; i < count && found; i++) {
        char *text, *begin;
        Py_ssize_t begins_with;
        if (PyBytes_AsStringAndSize(PyTuple_GET_ITEM(rests, i), &text, &lengths[1]) ||
            PyBytes_AsStringAndSize(PyTuple_GET_ITEM(begins, i), &begin, &begins_with)) {
            Py_CLEAR(found);
            break;
        }
        names[1] = text;
        Py_ssize_t start = offset + BLOCK, length = -1;
        if (start <= end)
            length = size_of_member((const uint8_t *)tar.buf + offset, (const uint8_t *)blank, sum, names, lengths);
        if (length < begins_with || length > end - start || memcmp((const char *)tar.buf + start, begin, begins_with)) {
            Py_CLEAR(found);
            break;
        }
        PyObject *from = PyLong_FromSsize_t(start), *to = PyLong_FromSsize_t(start + length);
        PyObject *slice = from && to ? PySlice_New(from, to, NULL) : NULL;
        PyObject *member = slice ? PyObject_GetItem(view, slice) : NULL;
        if (!member || PyList_Append(found, member))
            Py_CLEAR(found);
        Py_XDECREF(from);
        Py_XDECREF(to);
        Py_XDECREF(slice);
        Py_XDECREF(member);
        offset = start + length + (BLOCK - length % BLOCK) % BLOCK;
    }
    PyBuffer_Release(&tar);
    if (PyErr_Occurred())
        return NULL;
    if (found && offset == end)
        return found;
    Py_XDECREF(found);
    Py_RETURN_NONE;
}

/* ---- checking ---- */

/* Sums of blocks of a plane, and its lowest and highest byte. `columns` has room for a row. */
static void sum_blocks(const uint8_t *restrict plane, size_t side, size_t blocks, uint16_t *restrict columns,
                       uint8_t *restrict lowest, uint8_t *restrict highest, uint32_t *restrict sums)
{
    size_t size = side / blocks;
    for (size_t row = 0; row < blocks; row++) {
        memset(columns, 0, side * sizeof *columns);
        for (size_t y = 0; y < size; y++, plane += side)
            for (size_t x = 0; x < side; x++) {
                columns[x] += plane[x];
                lowest[x] = plane[x] < lowest[x] ? plane[x] : lowest[x];
                highest[x] = plane[x] > highest[x] ? plane[x] : highest[x];
            }
        for (size_t block = 0; block < blocks; block++, sums++) {
            *sums = 0;
            for (size_t x = 0; x < size; x++)
                *sums += columns[block * size + x];
        }
    }
}

static void sum_picture(const uint8_t *picture, size_t side, size_t blocks, uint16_t *columns, uint32_t *sums,
                        uint8_t *ends)
{
    uint8_t *lowest = (uint8_t *)(columns + side), *highest = lowest + side;
    for (int plane = 0; plane < 3; plane++, picture += side * side, sums += blocks * blocks, ends += 2) {
        memset(lowest, 255, side);
        memset(highest, 0, side);
        sum_blocks(picture, side, blocks, columns, lowest, highest, sums);
        ends[0] = 255;
        ends[1] = 0;
        for (size_t x = 0; x < side; x++) {
            ends[0] = lowest[x] < ends[0] ? lowest[x] : ends[0];
            ends[1] = highest[x] > ends[1] ? highest[x] : ends[1];
        }
    }
}

PyDoc_STRVAR(about_sums, "block_sums(picture, side, blocks, sums, ends) -> bool\n\n"
                         "Sums of equal blocks of (3, side, side) bytes -> sums, (3, blocks, blocks) uint32, and the\n"
                         "lowest and the highest byte of each plane -> ends, (3, 2) uint8.\n"
                         "False where the buffers do not fit, or 16 bits do not hold the sum of a block's column.");

static PyObject *block_sums(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    Py_buffer picture, sums, ends;
    Py_ssize_t side, blocks;
    if (!PyArg_ParseTuple(arguments, "y*nnw*w*", &picture, &side, &blocks, &sums, &ends))
        return NULL;
    int fits = side > 0 && side <= 1 << 14 && blocks > 0 && side % blocks == 0 && side / blocks <= 257 &&
               picture.len == 3 * side * side && sums.len == 3 * blocks * blocks * (Py_ssize_t)sizeof(uint32_t) &&
               ends.len == 6;
    uint16_t *columns = fits ? PyMem_RawMalloc(side * (sizeof *columns + 2)) : NULL;
    if (columns) {
        Py_BEGIN_ALLOW_THREADS;
        sum_picture(picture.buf, side, blocks, columns, sums.buf, ends.buf);
        Py_END_ALLOW_THREADS;
    }
    PyMem_RawFree(columns);
    PyBuffer_Release(&picture);
    PyBuffer_Release(&sums);
    PyBuffer_Release(&ends);
    return PyBool_FromLong(columns != NULL);
}

static int is_zero(const uint8_t *bytes, size_t size)
{
    return !bytes[0] && !memcmp(bytes, bytes + 1, size - 1);
}

/* One row of bits -> the bytes at `first`. False where neighbours with the same `columns` differ. */
static int shrink_row(const uint8_t *bits, size_t side, const int64_t *columns, const int64_t *first, size_t width,
                      uint8_t *pixels, uint8_t *out)
{
    for (size_t i = 0; i < side / 8; i++)
        memcpy(pixels + 8 * i, &pixels_of[bits[i]], 8);
    for (size_t x = 1; x < side; x++)
        if (pixels[x] != pixels[x - 1] && columns[x] == columns[x - 1])
            return 0;
    for (size_t x = 0; x < width; x++)
        out[x] = pixels[first[x]];
    return 1;
}

/* As about_shrunk says, after all sizes and indices were checked. */
static int shrink(const uint8_t *bits, size_t side, const int64_t *rows, const int64_t *first_rows, size_t height,
                  const int64_t *columns, const int64_t *first_columns, size_t width, uint8_t *pixels, uint8_t *out)
{
    size_t stride = side / 8;
    for (size_t y = 0; y < side; y++) {
        size_t first = first_rows[rows[y]];
        if (first != y && memcmp(bits + y * stride, bits + first * stride, stride))
            return 0;
    }
    for (size_t y = 0; y < height; y++) {
        const uint8_t *row = bits + first_rows[y] * stride;
        if (is_zero(row, stride))
            memset(out + y * width, 0, width);
        else if (!shrink_row(row, side, columns, first_columns, width, pixels, out + y * width))
            return 0;
    }
    return 1;
}

/* Whether a buffer holds `count` int64, each at least 0 and below `end`. */
static int are_indices(const Py_buffer *buffer, Py_ssize_t count, Py_ssize_t end)
{
    const int64_t *indices = buffer->buf;
    if (buffer->len != count * (Py_ssize_t)sizeof *indices || (uintptr_t)indices % sizeof *indices)
        return 0;
    for (Py_ssize_t i = 0; i < count; i++)
        if (indices[i] < 0 || indices[i] >= end)
            return 0;
    return 1;
}

PyDoc_STRVAR(about_shrunk,
             "shrunk(bits, rows, first_rows, columns, first_columns, out) -> bool | None\n\n"
             "As shards.same_region.original_mask: packed bits (S, S // 8) -> out, (H, W) bytes; False where they are\n"
             "enlarged from none, None where the buffers do not fit. rows, columns: (S,) int64, the row and the column\n"
             "of the original of each; first_rows (H,), first_columns (W,): where each stands first.");

static PyObject *shrunk(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    Py_buffer b[6]; /* bits, rows, first_rows, columns, first_columns, out */
    if (!PyArg_ParseTuple(arguments, "y*y*y*y*y*w*", &b[0], &b[1], &b[2], &b[3], &b[4], &b[5]))
        return NULL;
    Py_ssize_t word = sizeof(int64_t), side = b[1].len / word, height = b[2].len / word, width = b[4].len / word;
    int found = -1;
    uint8_t *pixels = NULL;
    if (side > 0 && side <= 1 << 14 && side % 8 == 0 && height > 0 && width > 0 && height <= side && width <= side &&
        b[0].len == side * (side / 8) && b[5].len == height * width && are_indices(&b[1], side, height) &&
        are_indices(&b[2], height, side) && are_indices(&b[3], side, width) && are_indices(&b[4], width, side) &&
        (pixels = PyMem_RawMalloc(side))) {
        Py_BEGIN_ALLOW_THREADS;
        found = shrink(b[0].buf, side, b[1].buf, b[2].buf, height, b[3].buf, b[4].buf, width, pixels, b[5].buf);
        Py_END_ALLOW_THREADS;
    }
    PyMem_RawFree(pixels);
    for (int i = 0; i < 6; i++)
        PyBuffer_Release(&b[i]);
    if (found < 0)
        Py_RETURN_NONE;
    return PyBool_FromLong(found);
}

/* ---- writing shards ---- */

/* A row of each plane -> differences to the row above, which begins `above` bytes before (0: there is none), and to
   green. */
static void filter_row(const uint8_t *restrict r, const uint8_t *restrict g, const uint8_t *restrict b, size_t above,
                       size_t side, uint8_t *restrict out_r, uint8_t *restrict out_g, uint8_t *restrict out_b)
{
    if (!above)
        for (size_t x = 0; x < side; x++) {
            out_r[x] = r[x] - g[x];
            out_g[x] = g[x];
            out_b[x] = b[x] - g[x];
        }
    else
        for (size_t x = 0; x < side; x++) {
            uint8_t green = g[x] - g[x - above];
            out_r[x] = r[x] - r[x - above] - green;
            out_g[x] = green;
            out_b[x] = b[x] - b[x - above] - green;
        }
}

/* A row -> differences to the left, but for its first byte. */
static void subtract_left(const uint8_t *restrict row, size_t side, uint8_t *restrict out)
{
    out[0] = row[0];
    for (size_t x = 1; x < side; x++)
        out[x] = row[x] - row[x - 1];
}

PyDoc_STRVAR(about_filtered, "filtered(picture, side, is_gradient, out) -> bool\n\n"
                             "(3, side, side) bytes -> out, of the same size: what undo_gradient undoes, or undo_up.\n"
                             "False where the buffers do not fit.");

static PyObject *filtered(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    Py_buffer picture, out;
    Py_ssize_t side;
    int is_gradient;
    if (!PyArg_ParseTuple(arguments, "y*npw*", &picture, &side, &is_gradient, &out))
        return NULL;
    const uint8_t *from = picture.buf;
    uint8_t *to = out.buf, *rows = NULL;
    int fits = side > 0 && side <= 1 << 14 && picture.len == 3 * side * side && out.len == picture.len &&
               (to + out.len <= from || from + picture.len <= to) && (rows = PyMem_RawMalloc(3 * side));
    if (fits) {
        size_t area = side * side;
        Py_BEGIN_ALLOW_THREADS;
        for (size_t at = 0; at < area; at += side) {
            uint8_t *ends[3] = {to + at, to + area + at, to + 2 * area + at};
            const uint8_t *r = from + at, *g = r + area, *b = g + area;
            if (is_gradient) {
                filter_row(r, g, b, at ? side : 0, side, rows, rows + side, rows + 2 * side);
                for (int plane = 0; plane < 3; plane++)
                    subtract_left(rows + plane * side, side, ends[plane]);
            } else
                filter_row(r, g, b, at ? side : 0, side, ends[0], ends[1], ends[2]);
        }
        Py_END_ALLOW_THREADS;
    }
    PyMem_RawFree(rows);
    PyBuffer_Release(&picture);
    PyBuffer_Release(&out);
    return PyBool_FromLong(fits);
}

/* ---- choosing ---- */

PyDoc_STRVAR(about_shuffled, "shuffled(numbers, salt) -> list\n\nAs trainer.data.choice.shuffled.");

static PyObject *shuffled(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    PyObject *numbers;
    unsigned long long state; /* of Knuth's generator for 64 bits */
    if (!PyArg_ParseTuple(arguments, "OK", &numbers, &state)) /* K takes the lowest 64 bits */
        return NULL;
    PyObject *order = PySequence_List(numbers);
    if (!order)
        return NULL;
    for (Py_ssize_t last = PyList_GET_SIZE(order) - 1; last > 0; last--) {
        state = (state * 6364136223846793005u + 1442695040888963407u) & 0xFFFFFFFFFFFFFFFFu;
        Py_ssize_t at = (Py_ssize_t)((state >> 32) * ((uint64_t)last + 1) >> 32);
        PyObject *moved = PyList_GET_ITEM(order, last);
        PyList_SET_ITEM(order, last, PyList_GET_ITEM(order, at));
        PyList_SET_ITEM(order, at, moved);
    }
    return order;
}

static PyMethodDef methods[] = {{"run", run, METH_O, about_run},
                                {"run_rows", run_rows, METH_VARARGS, about_rows},
                                {"block_sums", block_sums, METH_VARARGS, about_sums},
                                {"filtered", filtered, METH_VARARGS, about_filtered},
                                {"shrunk", shrunk, METH_VARARGS, about_shrunk},
                                {"shuffled", shuffled, METH_VARARGS, about_shuffled},
                                {"exact_members", exact_members, METH_VARARGS, about_members},
                                {NULL, NULL, 0, NULL}};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_decode", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__decode(void)
{
    static const char *const names[KINDS] = {"PICTURE", "PACKED", "MASK", "PACKED_UNION", "MASK_UNION", "CELLS", "COPY"};
    for (int byte = 0; byte < 256; byte++) {
        uint8_t eight[8];
        for (int bit = 0; bit < 8; bit++)
            eight[bit] = byte >> (7 - bit) & 1;
        memcpy(&pixels_of[byte], eight, 8);
    }
    load_zstd();
    PyObject *module = PyModule_Create(&definition);
    for (int kind = 0; module && kind < KINDS; kind++)
        if (PyModule_AddIntConstant(module, names[kind], kind))
            Py_CLEAR(module);
    if (module && (PyModule_AddIntConstant(module, "INTERFACE", INTERFACE) ||
                   PyModule_AddIntConstant(module, "MAX_OBJECTS", MAX_OBJECTS) ||
                   PyModule_AddIntConstant(module, "has_zstd", has_zstd)))
        Py_CLEAR(module);
    return module;
}
