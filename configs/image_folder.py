"""A template for your own images: DIR/train/CLASS/*.jpg and DIR/test/CLASS/*.jpg.

    python train.py --config=configs/image_folder.py --workdir=runs/mine --config.data.data_dir=DIR \
        --config.model.options.num_classes=N
"""

from slimvit_jax.training.recipes import life_on_imagenet


def get_config():
    config = life_on_imagenet("deit_small_patch16_224")
    config.name = "image_folder"
    config.data.update(name="folder", eval_split="test", batch_size=64, num_workers=2)
    config.model.options.num_classes = 10
    config.init.options = {"init_missing": ("head",)}  # another number of classes: a fresh classifier
    config.stages.predictor.lr.method = 1e-3
    config.stages.backbone.update(trainable="backbone", epochs=5.0)
    config.stages.backbone.lr.backbone = 1e-4
    return config
