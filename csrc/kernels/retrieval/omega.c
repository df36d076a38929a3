/* Omega of a forward pass, a task a block. See docs/mathematics/feature_maps.md. */
#include "kernels/retrieval/omega.h"

#include <string.h>

#include "kernels/base/transpose.h"
#include "kernels/maps/omega.h"
#include "runtime/threads.h"

typedef struct {
    float *normals; /* d x d */
    void *orthogonal_scratch;
} OmegaScratch;

static OmegaScratch take_scratch(size_t d, Arena *arena)
{
    OmegaScratch w;
    w.normals = take_bytes(arena, d * d * sizeof(float));
    w.orthogonal_scratch = take_bytes(arena, orthogonal_block_scratch(d));
    return w;
}

size_t omega_scratch(size_t d)
{
    Arena arena = {0};
    take_scratch(d, &arena);
    return arena.next;
}

static void draw_block(FwmBlockSource *source, size_t d, size_t m, size_t block, real *omega, Arena arena)
{
    const OmegaScratch w = take_scratch(d, &arena);
    const size_t first = block * d;
    fwm_next_normal_block(source, d * d, w.normals);
    orthogonal_block(d, w.normals, fwm_min(d, m - first), omega + first, fwm_padded(m), w.orthogonal_scratch);
}

void draw_omega(FwmBlockSource *source, size_t d, size_t m, real *omega, void *scratch)
{
    for (size_t block = 0; block < omega_blocks(d, m); block++)
        draw_block(source, d, m, block, omega, arena_at(scratch));
}

FwmBlockSource source_of_pass(const FwmModel *model, size_t passes)
{
    const FwmModelSizes *z = &model->sizes;
    FwmBlockSource source = model->omega_source;
    if (model->redraws)
        fwm_skip_normal_blocks(&source, z->d * z->d, passes * omega_blocks(z->d, z->argument));
    return source;
}

static void block_task(void *context, size_t block, int thread)
{
    const Step *s = context;
    const size_t d = s->sizes->d;
    FwmBlockSource source = s->model->omega_source;
    fwm_skip_normal_blocks(&source, d * d, block);
    draw_block(&source, d, s->sizes->argument, block, s->omega, thread_scratch(s, thread));
}

void prepare_omega(Step *s)
{
    const size_t d = s->sizes->d, m = s->map_shape.extension, ld = fwm_padded(m);
    memset(s->omega, 0, d * ld * sizeof(real));
    if (s->batch->omega) {
        for (size_t i = 0; i < d; i++)
            memcpy(s->omega + i * ld, (const real *)s->batch->omega + i * m, m * sizeof(real));
    } else {
        fwm_parallel_for(s->model->threads, omega_blocks(d, m), block_task, s);
        s->model->omega_source = source_of_pass(s->model, 1);
    }
    memset(s->omega_t, 0, m * fwm_padded(d) * sizeof(real));
    transpose(d, m, s->omega, ld, s->omega_t, fwm_padded(d));
}
