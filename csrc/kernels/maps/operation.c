/* The operation of all maps, on packed arrays: tokens go through a map in tiles of padded rows; a task is a fixed
 * number of tokens.
 *
 * Backward: nothing is saved; phi is recomputed for each tile. dx += Omega du for maps with an extension (map.h). */
#include <string.h>

#include "kernels/base/arena.h"
#include "kernels/base/gemm.h"
#include "kernels/base/transpose.h"
#include "kernels/maps/map.h"
#include "kernels/maps/omega.h"
#include "runtime/threads.h"

#define TASK_TOKENS 1024

/* A tile of tokens on its way through a map: the scratch of a thread. */
typedef struct {
    real *dpre, *pre;      /* TILE x ld */
    real *phi, *dphi;      /* TILE x ld_features */
    real *omega, *omega_t; /* d x padded(m), m x padded(d) */
    void *map_scratch;
} MapTile;

/* A call with what its tasks share. */
typedef struct {
    const FwmMapCall *c;
    const FeatureMap *map;
    MapShape shape;
    void *scratch;
    size_t thread_bytes; /* of the scratch of a thread */
} MapContext;

static MapTile take_tile(const FeatureMap *map, const MapShape *s, Arena *arena)
{
    MapTile tile;
    tile.dpre = take(arena, FWM_TILE * s->ld);
    tile.pre = take(arena, FWM_TILE * s->ld);
    tile.phi = take(arena, FWM_TILE * s->ld_features);
    tile.dphi = take(arena, FWM_TILE * s->ld_features);
    tile.omega = take(arena, s->d * fwm_padded(s->extension));
    tile.omega_t = take(arena, s->extension * fwm_padded(s->d));
    tile.map_scratch = take_bytes(arena, map->scratch ? map->scratch(s) : 0);
    return tile;
}

static MapContext context_of(const FwmMapCall *c, void *scratch)
{
    MapContext m = {.c = c, .map = feature_maps[c->map], .scratch = scratch};
    m.shape = map_shape(m.map, c->d, c->argument);
    Arena arena = {0};
    take_tile(m.map, &m.shape, &arena);
    m.thread_bytes = arena.next;
    return m;
}

static MapTile tile_of_thread(const MapContext *m, int thread)
{
    const MapShape *s = &m->shape;
    Arena arena = arena_of_thread(m->scratch, thread, m->thread_bytes);
    const MapTile tile = take_tile(m->map, s, &arena);
    if (s->extension) {
        pad_rows(s->d, m->c->omega, s->extension, tile.omega, fwm_padded(s->extension));
        memset(tile.omega_t, 0, s->extension * fwm_padded(s->d) * sizeof(real));
        transpose(s->d, s->extension, m->c->omega, s->extension, tile.omega_t, fwm_padded(s->d));
    }
    return tile;
}

/* phi of n tokens from token t on, into the tile. */
static void forward_tile(const MapContext *m, const MapTile *tile, size_t t, size_t n)
{
    const MapShape *s = &m->shape;
    pad_rows(n, (const real *)m->c->x + t * s->d, s->d, tile->pre, s->ld);
    if (s->extension)
        omega_forward(s, tile->omega, n, tile->pre);
    m->map->forward(s, n, tile->pre, tile->phi, tile->map_scratch);
}

static void forward_task(void *context, size_t index, int thread)
{
    const MapContext *m = context;
    const FwmMapCall *c = m->c;
    const MapTile tile = tile_of_thread(m, thread);
    const size_t p = m->shape.features, last = fwm_min((index + 1) * TASK_TOKENS, c->n);
    for (size_t t = index * TASK_TOKENS; t < last; t += FWM_TILE) {
        const size_t n = fwm_min(FWM_TILE, last - t);
        forward_tile(m, &tile, t, n);
        unpad_rows(n, tile.phi, m->shape.ld_features, (real *)c->phi + t * p, p);
    }
}

static void backward_task(void *context, size_t index, int thread)
{
    const MapContext *m = context;
    const FwmMapCall *c = m->c;
    const MapShape *s = &m->shape;
    const MapTile tile = tile_of_thread(m, thread);
    const size_t p = s->features, last = fwm_min((index + 1) * TASK_TOKENS, c->n);
    for (size_t t = index * TASK_TOKENS; t < last; t += FWM_TILE) {
        const size_t n = fwm_min(FWM_TILE, last - t);
        forward_tile(m, &tile, t, n);
        pad_rows(n, (const real *)c->dphi + t * p, p, tile.dphi, s->ld_features);
        m->map->backward(s, n, tile.dphi, tile.pre, tile.phi, tile.dpre, tile.map_scratch);
        if (s->extension)
            omega_backward(s, tile.omega_t, n, tile.dpre);
        unpad_rows(n, tile.dpre, s->ld, (real *)c->dx + t * s->d, s->d);
    }
}

size_t map_scratch(const void *call, int threads)
{
    return context_of(call, NULL).thread_bytes * (size_t)threads;
}

void map_forward(const void *call, int threads, void *scratch)
{
    MapContext m = context_of(call, scratch);
    fwm_parallel_for(threads, fwm_tiles(m.c->n, TASK_TOKENS), forward_task, &m);
}

void map_backward(const void *call, int threads, void *scratch)
{
    MapContext m = context_of(call, scratch);
    fwm_parallel_for(threads, fwm_tiles(m.c->n, TASK_TOKENS), backward_task, &m);
}
