/* The operation of all maps, on packed arrays: tokens go through a map in tiles of padded rows, in tasks of a fixed
 * size.
 *
 * Backward: nothing is saved; phi is made again for each tile. dx += Omega du for maps with an extension (map.h). */
#include <string.h>

#include "kernels/base/arena.h"
#include "kernels/base/gemm.h"
#include "kernels/base/transpose.h"
#include "kernels/maps/map.h"
#include "kernels/maps/omega.h"
#include "runtime/threads.h"

#define TOKENS_IN_TASK 1024

/* A thread's tile of tokens on its way through a map. */
typedef struct {
    real *dpre, *pre;      /* TILE x ld; numbers of no meaning lie before and behind pre and dphi (map.h) */
    real *phi, *dphi;      /* TILE x ld_features */
    real *omega, *omega_t; /* d x padded(m), m x padded(d) */
    real *map_scratch;
} MapTile;

typedef struct {
    const FwmMapCall *c;
    const FeatureMap *map;
    MapShape shape;
    void *scratch;
    size_t stride; /* bytes of a thread's scratch */
} MapWork;

static MapTile take_tile(const FeatureMap *map, const MapShape *s, Arena *arena)
{
    MapTile tile = {.dpre = take(arena, FWM_TILE * s->ld), .pre = take(arena, FWM_TILE * s->ld)};
    tile.phi = take(arena, FWM_TILE * s->ld_features);
    tile.dphi = take(arena, FWM_TILE * s->ld_features);
    tile.omega = take(arena, s->d * fwm_padded(s->extension));
    tile.omega_t = take(arena, s->extension * fwm_padded(s->d));
    tile.map_scratch = take(arena, map->scratch ? map->scratch(s) : 0);
    return tile;
}

static MapWork work_of(const FwmMapCall *c, void *scratch)
{
    MapWork work = {.c = c, .map = feature_maps[c->map], .scratch = scratch};
    work.shape = map_shape(work.map, c->d, c->argument);
    Arena arena = {0};
    take_tile(work.map, &work.shape, &arena);
    work.stride = arena.next;
    return work;
}

static MapTile begin_task(const MapWork *work, int thread)
{
    const MapShape *s = &work->shape;
    Arena arena = arena_of_thread(work->scratch, thread, work->stride);
    const MapTile tile = take_tile(work->map, s, &arena);
    if (s->extension) {
        pad_rows(s->d, work->c->omega, s->extension, tile.omega, fwm_padded(s->extension));
        memset(tile.omega_t, 0, s->extension * fwm_padded(s->d) * sizeof(real));
        transpose(s->d, s->extension, work->c->omega, s->extension, tile.omega_t, fwm_padded(s->d));
    }
    return tile;
}

/* phi of n tokens from token t on. */
static void map_tile(const MapWork *work, const MapTile *tile, size_t t, size_t n)
{
    const MapShape *s = &work->shape;
    pad_rows(n, (const real *)work->c->x + t * s->d, s->d, tile->pre, s->ld);
    if (s->extension)
        expand_rows(s, tile->omega, n, tile->pre);
    work->map->forward(s, n, tile->pre, tile->phi, tile->map_scratch);
}

static void forward_task(void *context, size_t index, int thread)
{
    const MapWork *work = context;
    const FwmMapCall *c = work->c;
    const MapTile tile = begin_task(work, thread);
    const size_t p = work->shape.features, last = fwm_min((index + 1) * TOKENS_IN_TASK, c->n);
    for (size_t t = index * TOKENS_IN_TASK; t < last; t += FWM_TILE) {
        const size_t n = fwm_min(FWM_TILE, last - t);
        map_tile(work, &tile, t, n);
        unpad_rows(n, tile.phi, work->shape.ld_features, (real *)c->phi + t * p, p);
    }
}

static void backward_task(void *context, size_t index, int thread)
{
    const MapWork *work = context;
    const FwmMapCall *c = work->c;
    const MapShape *s = &work->shape;
    const MapTile tile = begin_task(work, thread);
    const size_t p = s->features, last = fwm_min((index + 1) * TOKENS_IN_TASK, c->n);
    for (size_t t = index * TOKENS_IN_TASK; t < last; t += FWM_TILE) {
        const size_t n = fwm_min(FWM_TILE, last - t);
        map_tile(work, &tile, t, n);
        pad_rows(n, (const real *)c->dphi + t * p, p, tile.dphi, s->ld_features);
        work->map->backward(s, n, tile.dphi, tile.pre, tile.phi, tile.dpre, tile.map_scratch);
        if (s->extension)
            contract_rows(s, tile.omega_t, n, tile.dpre);
        unpad_rows(n, tile.dpre, s->ld, (real *)c->dx + t * s->d, s->d);
    }
}

size_t map_scratch(const void *call, int threads)
{
    return work_of(call, NULL).stride * (size_t)threads;
}

void map_forward(const void *call, int threads, void *scratch)
{
    MapWork work = work_of(call, scratch);
    fwm_parallel_for(threads, fwm_tiles(work.c->n, TOKENS_IN_TASK), forward_task, &work);
}

void map_backward(const void *call, int threads, void *scratch)
{
    MapWork work = work_of(call, scratch);
    fwm_parallel_for(threads, fwm_tiles(work.c->n, TOKENS_IN_TASK), backward_task, &work);
}
