/* What the parts of the module in C have in common. */
#pragma once
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <string.h>

#include "sliding.h"

#define ERROR_BYTES 256
#define TYPE_FLAGS (Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE)

void free_object(PyObject *self);
/* A PyCapsule of what lies in `owner`, which it keeps. */
PyObject *capsule_in(PyObject *owner, void *what, const char *name);
/* sliding(steps, time_axis), of the engine that `owner` holds. */
PyObject *make_sliding(PyObject *owner, const struct engine *, PyObject *args, PyObject *keywords);
int add_sliding_types(PyObject *module);
