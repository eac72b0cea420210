"""A template for your own images: DIR/train/CLASS/*.jpg and DIR/val/CLASS/*.jpg (or test/).

    python train.py --config=configs/image_folder.py --workdir=runs/mine --config.data.data_dir=DIR

The classes are the folders. Of a folder without splits, DIR/CLASS/*.jpg, a fifth of each class is held out by
'--config.data.train_split=train[:80%]' '--config.data.eval_split=train[80%:]'. Another named model starts from its own
published weights, at any image size that its patches divide. --config.init.path=FILE, or hf-hub:OWNER/NAME, takes
others.

    --config.model.name=vit_small_patch14_dinov2 --config.model.options.img_size=224

--config.stages.dense.trainable=head tunes the classifier alone. Models compute in bfloat16, an ONNX file in float32.

DeiT-S with timm's ImageNet weights is tuned to your classes first. It is slimmed then, in one stage, with lives from
coverage and the dead merged into their most similar survivors, which did better than learned lives on held-out
photographs (docs/results.md). Training masks what inference drops, and every image draws its keep rate, so that one
set of weights serves them all. Epochs and learning rates are starting points. Learned lives in the paper's two stages
are in configs/imagenet_deit_small.py.

Source: ours.
Losses: dense: classification. finetune: classification.
Outcome: a template, so there is none.
"""

from slimvit_jax.training.config import add_stage, default_config


def get_config():
    config = default_config()
    config.name = "image_folder"
    config.model.name = "deit_small_patch16_224"
    config.model.options = {"dtype": "bfloat16"}  # as many classes as there are folders
    config.method.name = "life_regression"
    config.method.options = {"keep_rate": 0.7, "locations": (4, 7, 10), "lives": "coverage", "squeeze": "mean"}
    config.method.options.update(hard=True, sampled_rates=(0.9, 0.8, 0.7, 0.5))
    config.init.path = "published"  # timm's weights
    # another number of classes: a fresh classifier; another image size: positions of its grid
    config.init.options = {"init_missing": ("head",), "resample_pos_embed": True}
    config.data.update(name="folder", eval_split="test", batch_size=64, num_workers=2)
    config.augment.update(kind="crop", hflip=0.5)  # no mixup
    config.eval.batch_size = 256
    config.checkpoint.every_steps = 2000
    config.log.every_steps = 50
    config.report.seeds = 1  # of random orders to compare with; each is two passes over the images per keep rate
    common = {"weight_decay": 0.05, "clip_norm": 1.0, "warmup_epochs": 0.5}
    add_stage(config, "dense", slimmed=False, epochs=10.0, lr={"backbone": 1e-4}, **common)
    add_stage(config, "finetune", epochs=5.0, lr={"backbone": 5e-5}, **common)
    return config
