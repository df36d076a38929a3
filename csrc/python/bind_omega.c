/* fwm_py.feature_maps.draw_omega: omega (d x m), float32: ceil(m / d) blocks of d x d normals from the generator, made
 * orthogonal. */
#include "api/dispatch.h"
#include "python/bindings.h"
#include "python/objects.h"
#include "runtime/scratch.h"

enum { D, M, GENERATOR };

static const FwmArgument arguments[] = {
    [D] = {"d", FWM_INTEGER, .low = 1, .high = 8192},
    [M] = {"m", FWM_INTEGER, .low = 1, .high = 1 << 20},
    [GENERATOR] = {"generator", FWM_OBJECT},
};

static PyObject *draw_omega(PyObject *Py_UNUSED(self), FwmArguments *a)
{
    FwmBlockSource *source = fwm_block_source_of(a->given[GENERATOR]);
    if (!source || fwm_claim(a->given[GENERATOR]) < 0)
        return NULL;
    const FwmKernels *kernels = fwm_kernels_f32();
    const size_t d = (size_t)a->values[D].integer, m = (size_t)a->values[M].integer, blocks = fwm_tiles(m, d);
    const npy_intp shape[] = {(npy_intp)d, (npy_intp)m};
    PyObject *omega = PyArray_SimpleNew(2, shape, NPY_FLOAT);
    float *normals = omega ? fwm_scratch(blocks * d * d * sizeof(float)) : NULL;
    void *scratch = normals ? fwm_scratch(kernels->make_omega_scratch(d)) : NULL;
    if (scratch) {
        Py_BEGIN_ALLOW_THREADS
        for (size_t i = 0; i < blocks; i++)
            fwm_next_normal_block(source, d * d, normals + i * d * d);
        kernels->make_omega(d, m, normals, PyArray_DATA((PyArrayObject *)omega), scratch);
        Py_END_ALLOW_THREADS
    } else if (omega) {
        Py_CLEAR(omega);
        PyErr_NoMemory();
    }
    fwm_release_scratch(normals);
    fwm_release_scratch(scratch);
    fwm_release(a->given[GENERATOR]);
    return omega;
}

static FwmModuleFunction function = {
    .signature = {"draw_omega", arguments, FWM_LENGTH(arguments), FWM_LENGTH(arguments)}, .call = draw_omega};

int fwm_add_draw_omega(PyObject *module)
{
    return fwm_add_function(module, &function);
}
