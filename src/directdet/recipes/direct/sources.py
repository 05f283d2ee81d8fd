"""Where the constants of the recipes in direct.py come from, by "PHASE.setting", "setting" or "model.setting".

"Section", "Table" and "Figure" are those of the direct pre-training paper. Sources that only one recipe has are in
direct.py, next to the recipe.
"""

SOURCES = {
    "pretrain.resize": "section 3.2: ImageNet style",
    "pretrain.size": "section 3.3: 448x448, chosen from Table 1 and Figure 2",
    "pretrain.scale": "section 3.2: alpha in (0.8, 1.2)",
    "pretrain.batch_size": "section 3.3: 8 images per GPU",
    "pretrain.base_lr": "section 3.4: 0.02 for 2 images on each of 8 GPUs, scaled linearly (0.08 for 8)",
    "pretrain.epochs": "Table 3: 12 for P1x (88k iterations), 24, 36 and 48 for P2x, P3x and P4x",
    "pretrain.repeat": "authors' code: RepeatDataset(times=4), so that 1x is 88k iterations at batch 8 as at batch 2",
    "pretrain.epoch_batch": "section 3.1: fixed steps K; 12 epochs of 2 images per GPU are 88k steps",
    "pretrain.milestones": "section 4.1: the learning rate is not reduced while pre-training",
    "pretrain.warmup_iterations": "authors' code: linear, 500 iterations",
    "pretrain.warmup_factor": "authors' code: from 1 %",
    "pretrain.norm": "section 3.4: plain BN, statistics of the images on one GPU",
    "pretrain.norm_weight_decay": "authors' code: norm_decay_mult = 0",
    "pretrain.frozen_stages": "authors' code: none",
    "pretrain.eval_size": "authors' code: validation at (1333, 800) in both phases",
    "finetune.resize": "section 3.2: the typical resizing",
    "finetune.size": "section 3.2: (1333, 800)",
    "finetune.batch_size": "section 3.4: 2 images per GPU",
    "finetune.base_lr": "section 3.4: 0.02 for 2 images on each of 8 GPUs",
    "finetune.epochs": "section 4.1: 1x = 12 epochs, 2x = 24",
    "finetune.milestones": "mmdet schedules: after epochs 8 and 11 (1x), 16 and 22 (2x)",
    "finetune.warmup_iterations": "mmdet 1x schedule: linear, 500 iterations",
    "finetune.warmup_factor": "mmdet 1x schedule: from 0.1 %",
    "finetune.norm": "section 3.4, Table 2: statistics and affine parameters fixed",
    "finetune.frozen_stages": "authors' code: stem and stage 1, which the paper does not mention; -1 trains all stages",
    "finetune.parts": "section 4.1: the whole detector",
    "model.mask_slots": "ours: packs the mask RoIs of a batch; 128 per image hold all that are sampled",
    "model.candidates": "ours: mmdet limits the boxes that enter NMS only by their score",
    "model.box_convs": "section 4.1: 4conv1fc box head, without normalisation",
    "skip_empty": "mmdet's default: images without objects are left out, 117k of COCO's 118k remain",
    "skip_difficult": "mmdet's VOC dataset: difficult objects are ignored",
    "best_by": "COCO's measure",
    "base_batch": "section 3.4: 2 images on each of 8 GPUs",
    "momentum": "mmdet schedule: 0.9",
    "weight_decay": "mmdet schedule: 1e-4",
    "optimizer": "mmdet schedule: SGD",
    "gamma": "mmdet schedule: 0.1",
    "clip_norm": "authors' code: none",
    "precision": "authors' code: mixed precision for Swin-T only",
    "eval_every": "ours",
    "workers": "ours",
    "channels_last": "ours: faster, the same numbers",
}
# In addition, where the first phase is "scratch".
SCRATCH_SOURCES = {
    "scratch.resize": "section 3.2: the typical resizing",
    "scratch.size": "section 3.2: (1333, 800)",
    "scratch.batch_size": "Table 1: 2 images per GPU",
    "scratch.epochs": "Figure 1: 6x is 73 epochs; 3x and 4x are 36 and 48",
    "scratch.milestones": "mmdet's scratch schedules: after 65 and 71 of 73 epochs, 28 and 34 of 36; 4x: ours",
    "scratch.norm_weight_decay": "mmdet's scratch schedules: none",
    "scratch.warmup_factor": "mmdet's scratch schedules: from 10 %",
    "scratch.base_lr": "mmdet schedule: 0.02 for 16 images",
    "scratch.warmup_iterations": "mmdet 1x schedule: linear, 500 iterations",
    "scratch.norm": "Table 3: SyncBN, or GN (model.norm=gn); Table 1: plain BN",
}
# In addition, where training starts from ImageNet weights.
IMAGENET_SOURCES = {
    "finetune.norm": "Table 2: statistics fixed, affine parameters learn, mmdet's default",
    "finetune.frozen_stages": "mmdet's default: stem and stage 1",
    "finetune.parts": "ImageNet weights are the backbone's only",
    "model.box_convs": "the published baselines have mmdet's two-layer head; model.box_convs=4 for 4conv1fc",
}
SHORT_EDGES = "section 4.5: short edge of 640 to 800 in steps of 32"
