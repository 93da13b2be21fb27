/*
 * The functions of the cffi module that every message calls, without the cost of a cffi call: a tuple of arguments, and
 * the interpreter's lock released and taken again.  They are called by their addresses, so that there is one copy of
 * them and of their state.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

#include "channel.h"

enum { STEP, SET_EVENTS, ANSWER, COPY, PAYLOAD, STORE, FUNCTIONS };

static const char *const names[FUNCTIONS] = { "step", "set_events", "answer", "copy", "payload", "store" };
static void *functions[FUNCTIONS];

/* The value of an argument; -1 with an exception set if it is not a number, or too big. */
static int64_t number(PyObject *argument)
{
	return PyLong_AsLongLong(argument);
}

static void *pointer(PyObject *argument)
{
	return PyLong_AsVoidPtr(argument);
}

/* Whether there are `wanted` arguments; sets an exception otherwise. */
static int are(Py_ssize_t given, Py_ssize_t wanted)
{
	if (given != wanted)
		PyErr_Format(PyExc_TypeError, "%zd arguments, not %zd", wanted, given);
	return given == wanted;
}

static PyObject *bind(PyObject *self, PyObject *const *args, Py_ssize_t n)
{
	const char *name;

	(void)self;
	if (!are(n, 2) || !(name = PyUnicode_AsUTF8(args[0])))
		return NULL;
	for (int i = 0; i < FUNCTIONS; i++)
		if (strcmp(names[i], name) == 0) {
			functions[i] = pointer(args[1]);
			return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
		}
	PyErr_SetString(PyExc_KeyError, name);
	return NULL;
}

static PyObject *step(PyObject *self, PyObject *const *args, Py_ssize_t n)
{
	int (*const call)(void *, uint64_t, int32_t) = functions[STEP];
	void *channel;
	uint64_t deadline;
	int64_t result;
	int kind;

	(void)self;
	if (!are(n, 3))
		return NULL;
	channel = pointer(args[0]);
	/* The client chooses the deadline of its request, so the number may be any u64. */
	deadline = PyLong_AsUnsignedLongLong(args[1]);
	result = number(args[2]);
	if (PyErr_Occurred())
		return NULL;
	Py_BEGIN_ALLOW_THREADS kind = call(channel, deadline, (int32_t)result);
	Py_END_ALLOW_THREADS return PyLong_FromLong(kind);
}

static PyObject *current_request(PyObject *self, PyObject *const *args, Py_ssize_t n)
{
	const struct kfs_channel *ch;

	(void)self;
	if (!are(n, 1) || !(ch = pointer(args[0])))
		return NULL;
	return Py_BuildValue("(y#y#y#)", (const char *)ch, (Py_ssize_t)KFS_REQUEST_HEAD_SIZE, (const char *)ch->command,
			     (Py_ssize_t)ch->command_len, (const char *)ch->message, (Py_ssize_t)ch->message_len);
}

static PyObject *set_events(PyObject *self, PyObject *const *args, Py_ssize_t n)
{
	int (*const call)(void *, int64_t, int32_t) = functions[SET_EVENTS];
	void *channel;
	int64_t fh, revents;

	(void)self;
	if (!are(n, 3))
		return NULL;
	channel = pointer(args[0]);
	fh = number(args[1]);
	revents = number(args[2]);
	if (PyErr_Occurred())
		return NULL;
	return PyLong_FromLong(call(channel, fh, (int32_t)revents));
}

static PyObject *answer(PyObject *self, PyObject *const *args, Py_ssize_t n)
{
	int (*const call)(void *, int64_t, uint32_t, uint64_t, int32_t, const void *, int64_t) = functions[ANSWER];
	void *channel;
	int64_t fh, cmd, result;
	uint64_t unique;
	char *out;
	Py_ssize_t size;

	(void)self;
	if (!are(n, 6))
		return NULL;
	channel = pointer(args[0]);
	fh = number(args[1]);
	cmd = number(args[2]);
	/* A request that came to another daemon before has bit 63 set. */
	unique = PyLong_AsUnsignedLongLong(args[3]);
	result = number(args[4]);
	if (PyErr_Occurred() || PyBytes_AsStringAndSize(args[5], &out, &size) < 0)
		return NULL;
	return PyLong_FromLong(call(channel, fh, (uint32_t)cmd, unique, (int32_t)result, out, size));
}

static PyObject *copy(PyObject *self, PyObject *const *args, Py_ssize_t n)
{
	int (*const call)(void *, int64_t, const char *, int64_t) = functions[COPY];
	void *map;
	int64_t offset;
	char *data;
	Py_ssize_t size;

	(void)self;
	if (!are(n, 3))
		return NULL;
	map = pointer(args[0]);
	offset = number(args[1]);
	if (PyErr_Occurred() || PyBytes_AsStringAndSize(args[2], &data, &size) < 0)
		return NULL;
	return PyLong_FromLong(call(map, offset, data, size));
}

static PyObject *payload(PyObject *self, PyObject *const *args, Py_ssize_t n)
{
	int (*const call)(int, int, void *, uint64_t, uint64_t, uint64_t) = functions[PAYLOAD];
	int64_t pidfd, tid, offset;
	uint64_t address, size;
	void *map;
	int r;

	(void)self;
	if (!are(n, 6))
		return NULL;
	pidfd = number(args[0]);
	tid = number(args[1]);
	map = pointer(args[2]);
	offset = number(args[3]);
	address = PyLong_AsUnsignedLongLong(args[4]);
	size = PyLong_AsUnsignedLongLong(args[5]);
	if (PyErr_Occurred())
		return NULL;
	/* A client may delay this; other Python threads run meanwhile. */
	Py_BEGIN_ALLOW_THREADS r = call((int)pidfd, (int)tid, map, (uint64_t)offset, address, size);
	Py_END_ALLOW_THREADS return PyLong_FromLong(r);
}

static PyObject *store(PyObject *self, PyObject *const *args, Py_ssize_t n)
{
	int (*const call)(void *, int64_t, uint32_t, uint32_t, uint32_t, uint64_t, uint64_t, const void *, int64_t,
			  const void *, int64_t) = functions[STORE];
	int64_t fh, cmd, uid, tid;
	Py_ssize_t size, fixed_len;
	char *data, *fixed;
	uint64_t unique, address;
	void *channel;
	int r;

	(void)self;
	if (!are(n, 9))
		return NULL;
	channel = pointer(args[0]);
	fh = number(args[1]);
	cmd = number(args[2]);
	uid = number(args[3]);
	tid = number(args[4]);
	unique = PyLong_AsUnsignedLongLong(args[5]);
	address = PyLong_AsUnsignedLongLong(args[6]);
	if (PyErr_Occurred() || PyBytes_AsStringAndSize(args[7], &data, &size) < 0 ||
	    PyBytes_AsStringAndSize(args[8], &fixed, &fixed_len) < 0)
		return NULL;
	/* As in `payload`. */
	Py_BEGIN_ALLOW_THREADS r = call(channel, fh, (uint32_t)cmd, (uint32_t)uid, (uint32_t)tid, unique, address, data,
					size, fixed, fixed_len);
	Py_END_ALLOW_THREADS return PyLong_FromLong(r);
}

/* u64 of a struct, to be looked at and set one by one.  The memory is that of a channel, and has to last longer. */
struct words {
	PyObject_HEAD char *start;
	Py_ssize_t count;
};

static PyObject *words_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
	PyObject *start;
	struct words *words;
	Py_ssize_t count;

	(void)keywords;
	if (!PyArg_ParseTuple(args, "On", &start, &count))
		return NULL;
	words = (struct words *)type->tp_alloc(type, 0);
	if (!words)
		return NULL;
	words->start = pointer(start);
	words->count = count;
	if (PyErr_Occurred()) {
		Py_DECREF(words);
		return NULL;
	}
	return (PyObject *)words;
}

static int words_set(PyObject *self, PyObject *key, PyObject *item)
{
	const struct words *words = (struct words *)self;
	Py_ssize_t index = PyLong_AsSsize_t(key);
	uint64_t value;

	if (index == -1 && PyErr_Occurred())
		return -1;
	if (!item || index < 0 || index >= words->count) {
		PyErr_SetString(PyExc_IndexError, "no such word");
		return -1;
	}
	value = PyLong_AsUnsignedLongLong(item);
	if (value == UINT64_MAX && PyErr_Occurred())
		return -1;
	memcpy(words->start + 8 * index, &value, sizeof(value));
	return 0;
}

static PyObject *words_get(PyObject *self, PyObject *key)
{
	const struct words *words = (struct words *)self;
	Py_ssize_t index = PyLong_AsSsize_t(key);
	uint64_t value;

	if (index == -1 && PyErr_Occurred())
		return NULL;
	if (index < 0 || index >= words->count) {
		PyErr_SetString(PyExc_IndexError, "no such word");
		return NULL;
	}
	memcpy(&value, words->start + 8 * index, sizeof(value));
	return PyLong_FromUnsignedLongLong(value);
}

static PyObject *words_tobytes(PyObject *self, PyObject *unused)
{
	const struct words *words = (struct words *)self;

	(void)unused;
	return PyBytes_FromStringAndSize(words->start, 8 * words->count);
}

static PyMethodDef words_methods[] = {
	{ "tobytes", words_tobytes, METH_NOARGS, NULL },
	{ NULL, NULL, 0, NULL },
};

static PyType_Slot words_slots[] = {
	{ Py_tp_new, words_new },
	{ Py_tp_methods, words_methods },
	{ Py_mp_subscript, words_get },
	{ Py_mp_ass_subscript, words_set },
	{ 0, NULL },
};

static PyType_Spec words_spec = {
	.name = "kdbusfs.native._calls.Words",
	.basicsize = sizeof(struct words),
	.flags = Py_TPFLAGS_DEFAULT,
	.slots = words_slots,
};

#define METHOD(name)                                                                                                   \
	{                                                                                                              \
#name, (PyCFunction)(void (*)(void))name, METH_FASTCALL, NULL                                          \
	}

static PyMethodDef methods[] = {
	METHOD(bind), METHOD(step),    METHOD(current_request), METHOD(set_events),      METHOD(answer),
	METHOD(copy), METHOD(payload), METHOD(store),           { NULL, NULL, 0, NULL },
};

static struct PyModuleDef module = {
	.m_base = PyModuleDef_HEAD_INIT, .m_name = "_calls", .m_size = -1, .m_methods = methods
};

PyMODINIT_FUNC PyInit__calls(void)
{
	PyObject *made = PyModule_Create(&module);
	PyObject *type = PyType_FromSpec(&words_spec);

	if (!made || !type || PyModule_AddObjectRef(made, "Words", type) < 0)
		Py_CLEAR(made);
	Py_XDECREF(type);
	return made;
}
