"""A small detector that detects, as a checkpoint."""

from twin import conditioned_model

from directdet.infer.preprocess import Preprocess
from directdet.models.build import describe_model
from directdet.models.checkpoint import save_checkpoint
from directdet.models.rcnn import RCNNConfig

SIZE = (128, 160)


def conditioned_checkpoint(path, masks=True, seed=0):
    config = RCNNConfig(
        4,
        backbone="resnet18",
        width=16,
        fpn_channels=32,
        masks=masks,
        box_convs=1,
        box_features=32,
        mask_convs=1,
        mask_channels=16,
        test_pre_nms=100,
        test_proposals=60,
        candidates=100,
        detections=30,
    )
    model = conditioned_model(config, SIZE, seed)
    content = {
        "model_config": describe_model(config),
        "model": model.state_dict(),
        "classes": ["disk", "square", "triangle", "star"],
        "category_ids": [1, 2, 4, 7],
        "preprocess": Preprocess(size=SIZE).to_dict(),
        "recipe": "test",
        "phase": "finetune",
    }
    save_checkpoint(path, content)
    return model
