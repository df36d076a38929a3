/* Feature maps: phi(x), token by token.
 *
 * A map reads "pre-activation" rows: the d numbers of x and, for FAVOR+, the m numbers of u = x Omega behind them. u is
 * part of the row, and not computed by the map, because u is linear in x: in the retrieval experiment x of a token is
 * the sum of a row that depends on its key and a row that depends on its value, so u is computed once for each key and
 * each value, not once for each token.
 *
 * How to add one: docs/architecture.md. */
#ifndef FWM_KERNELS_MAPS_MAP_H
#define FWM_KERNELS_MAPS_MAP_H

#include "api/kernels.h"
#include "kernels/base/real.h"

/* The sizes of a map for one d and one argument, as map_shape fills them in. */
typedef struct {
    size_t d;           /* of x */
    size_t argument;    /* nu, m, or 0 */
    size_t features;    /* p, the size of phi(x) */
    size_t ld_features; /* p, padded: the numbers behind p are zeros */
    size_t extension;   /* m for FAVOR+: the size of u; else 0 */
    size_t u;           /* where u starts in a pre-activation row */
    size_t ld;          /* numbers in a pre-activation row */
    bool flushes;       /* the loop that maps flushes subnormal features to 0 (runtime/subnormals.h) */
} MapShape;

typedef struct {
    FwmMapInfo info;
    size_t (*features)(size_t d, size_t argument);
    size_t (*extension)(size_t argument); /* NULL: the map needs x alone */
    size_t (*scratch)(const MapShape *);  /* bytes for forward and backward; NULL: none */
    /* phi (n x ld_features) of n tokens, pre (n x ld) */
    void (*forward)(const MapShape *, size_t n, const real *pre, real *phi, void *scratch);
    /* dpre (n x ld): the gradients of x and u, the padding set to 0; pre and phi as forward left them */
    void (*backward)(const MapShape *, size_t n, const real *dphi, const real *pre, const real *phi, real *dpre,
                     void *scratch);
    /* For a map of which all features of a token may be 0, else NULL. vanishes: whether they are, for this x and every
     * u of which no number is larger than `largest`; false if that is not certain. largest: of the u of a row, NaN if
     * any is; that of a sum of two rows is at most the sum of theirs. */
    bool (*vanishes)(const MapShape *, const real *x, real largest);
    real (*largest)(const MapShape *, const real *pre);
} FeatureMap;

#define feature_maps FWM_NAME(feature_maps)
#define map_shape FWM_NAME(map_shape)
#define info_of_map FWM_NAME(info_of_map)
#define features_of_map FWM_NAME(features_of_map)
#define map_scratch FWM_NAME(map_scratch)
#define map_forward FWM_NAME(map_forward)
#define map_backward FWM_NAME(map_backward)

extern const FeatureMap *const feature_maps[]; /* NULL behind the last */
MapShape map_shape(const FeatureMap *map, size_t d, size_t argument);

/* By the row of the table. */
const FwmMapInfo *info_of_map(size_t map);
size_t features_of_map(size_t map, size_t d, size_t argument);

/* The passes of the operation; the call is an FwmMapCall. */
size_t map_scratch(const void *call, int threads);
void map_forward(const void *call, int threads, void *scratch);
void map_backward(const void *call, int threads, void *scratch);

#endif
