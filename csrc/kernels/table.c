/* The table of this copy of the kernels. */
#include "kernels/attention/softmax_attention.h"
#include "kernels/convolution/convolution.h"
#include "kernels/maps/map.h"
#include "kernels/maps/omega.h"
#include "kernels/noncausal/noncausal.h"
#include "kernels/norm/norm.h"
#include "kernels/retrieval/evaluation.h"
#include "kernels/retrieval/pass.h"
#include "kernels/retrieval/readouts/readout.h"
#include "kernels/rules/rule.h"

#define fwm_kernels FWM_NAME(kernels)

const FwmKernels fwm_kernels = {
    .variant = FWM_TEXT(FWM_VARIANT),
    .precision = FWM_PRECISION_NAME,
    .real_size = sizeof(real),
    .map_info = info_of_map,
    .rule_info = info_of_rule,
    .readout_info = info_of_readout,
    .map_features = features_of_map,
    .map = {.forward = {map_scratch, map_forward}, .backward = {map_scratch, map_backward}},
    .rule = {.forward = {rule_forward_scratch, rule_forward},
             .backward = {rule_backward_scratch, rule_backward},
             .flushes_subnormals = true},
    .noncausal = {.forward = {noncausal_forward_scratch, noncausal_forward},
                  .backward = {noncausal_backward_scratch, noncausal_backward},
                  .flushes_subnormals = true},
    .readout = {.forward = {readout_scratch, readout_forward}, .backward = {readout_scratch, readout_backward}},
    .attention = {.forward = {attention_forward_scratch, attention_forward},
                  .backward = {attention_backward_scratch, attention_backward},
                  .flushes_subnormals = true},
    .convolution = {.forward = {NULL, convolution_forward},
                    .backward = {convolution_backward_scratch, convolution_backward},
                    .flushes_subnormals = true},
    .convolution_update = {.forward = {NULL, convolution_update_states}, .flushes_subnormals = true},
    .norm = {.forward = {NULL, norm_forward},
             .backward = {norm_backward_scratch, norm_backward},
             .flushes_subnormals = true},
    .make_omega_scratch = build_omega_scratch,
    .make_omega = build_omega,
    .model = {.activations = model_activations,
              .scratch = model_scratch,
              .loss = model_loss,
              .gradients = model_gradients,
              .step = model_step,
              .read_out = model_read_out,
              .evaluate = model_evaluate,
              .recall = model_recall},
};
