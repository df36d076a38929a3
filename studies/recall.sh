#!/usr/bin/env bash
# The study of docs/recall.md, into studies/recall.csv; it goes on from the rows that are there.
set -euo pipefail
cd "$(dirname "$0")"

recall() {
    fwm-py recall --out recall.csv "$@"
}

widths=16,32,64
for pairs in 4 8 16 32; do
    task="--num_kv_pairs $pairs --seq_len $((4 * pairs))"
    for how in '--lr 5e-3,1e-2,2e-2,4e-2 --seed 1' '--lr best --seed 1,2,3'; do # four rates; the best with more seeds
        recall $task --d_model $widths $how --rule softmax,delta,gated_delta,kimi_delta,sum,gated_sum
        recall $task --d_model $widths $how --rule delta --feature_map elu1,dpfp1
        recall $task --d_model $widths $how --rule sum --feature_map elu1 --normalize
    done
done

# positive maps with and without normalisation; with four times the steps; and the smallest task
for how in '--lr 5e-3,1e-2,2e-2,4e-2 --seed 1' '--lr best --seed 1,2,3'; do
    recall $how --rule delta --feature_map elu1,dpfp1 --normalize
    recall $how --rule sum --feature_map elu1,dpfp1
    recall $how --rule sum --feature_map dpfp1 --normalize
done
for how in '--lr 1e-2,2e-2,4e-2 --seed 1' '--lr best --seed 1,2,3'; do
    recall --max_steps 4800 $how --rule delta --feature_map elu1,dpfp1
    recall --max_steps 4800 $how --rule sum --feature_map elu1,dpfp1 --normalize
    recall --num_kv_pairs 2 --seq_len 8 $how --rule sum --feature_map elu1 --normalize
done
