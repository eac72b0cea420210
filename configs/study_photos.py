"""benchmarks/study.py on photographs: a pretrained DINOv2-S/14 at 224 px, 256 patches, on folders of images.

    python -m benchmarks.pretrained --out weights
    python -m benchmarks.study --config=configs/study_photos.py --workdir=results/study_photos \
        --config.data.data_dir=IMAGES --config.init.path=weights/vit_small_patch14_dinov2.safetensors

IMAGES has train/CLASS/*.jpg and val/CLASS/*.jpg: ten dog breeds of ImageNet, a part of ImageWoof (imagewoof2-320, which
is public). Four fifths of the training images are learned from; choices are made on the other fifth, and the validation
images are looked at once per final row.

Source: stages and rates are ours; the options of a method are those at which its multiply-adds come nearest to life
regression's.
Losses: dense: classification. predictor: classification. backbone: classification.
Outcome: dense 86.58 % on 2,474 validation images; what the methods reach is in docs/results.md.
"""

from slimvit_jax.training.config import add_stage, default_config


def get_config():
    config = default_config()
    config.name = "study_photos"
    config.model.name = "vit_small_patch14_dinov2"
    config.model.options = {"img_size": 224, "num_classes": 10}
    config.method.name = "life_regression"
    config.method.options = {"keep_rate": 0.7, "locations": (4, 7, 10)}
    config.init.options = {"init_missing": ("head",), "resample_pos_embed": True}
    config.data.update(name="folder", train_split="train[:80%]", eval_split="val", batch_size=16)
    config.augment.update(kind="crop", crop_scale=(0.35, 1.0), hflip=0.5)
    config.eval.update(batch_size=16, every_epochs=0.0, keep_rates=())
    config.report.enabled = False
    config.log.update(every_steps=25, tensorboard=False)
    config.checkpoint.every_steps = 100
    common = {"weight_decay": 0.05, "clip_norm": 1.0, "warmup_epochs": 0.1}
    scale = ((r"head/.*", 20.0),)
    add_stage(config, "dense", slimmed=False, epochs=3.0, lr={"backbone": 5e-5}, lr_scale=scale, **common)
    add_stage(config, "predictor", trainable="method", epochs=1.0, lr={"method": 1e-2}, weight_decay=0.05)
    backbone = {"lr": {"backbone": 2e-5}, "weight_decay": 0.05, "warmup_epochs": 0.1}
    add_stage(config, "backbone", trainable="backbone", epochs=1.0, **backbone)
    add_stage(config, "finetune", epochs=2.0, lr={"backbone": 2e-5}, **common)
    config.schedule = ("dense", "predictor", "backbone")
    return config
