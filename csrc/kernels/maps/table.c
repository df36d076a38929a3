/* The table of feature maps, from which the command line, the help, the Python functions and the tests follow. */
#include "kernels/maps/map.h"

#define MAPS(ROW)                                                                                                      \
    ROW(elu1)                                                                                                          \
    ROW(tanh)                                                                                                          \
    ROW(dpfp)                                                                                                          \
    ROW(favor)

#define DECLARE(name) extern const FeatureMap FWM_NAME(map_##name);
#define LIST(name) &FWM_NAME(map_##name),

MAPS(DECLARE)

const FeatureMap *const feature_maps[] = {MAPS(LIST) NULL};

MapShape map_shape(const FeatureMap *map, size_t d, size_t argument)
{
    MapShape shape = {.d = d, .argument = argument};
    shape.features = map->features(d, argument);
    shape.ld_features = fwm_padded(shape.features);
    shape.extension = map->extension ? map->extension(argument) : 0;
    shape.u = fwm_padded(d);
    shape.ld = shape.u + fwm_padded(shape.extension);
    return shape;
}

const FwmMapInfo *info_of_map(size_t map)
{
    return feature_maps[map] ? &feature_maps[map]->info : NULL;
}

size_t features_of_map(size_t map, size_t d, size_t argument)
{
    return feature_maps[map]->features(d, argument);
}
