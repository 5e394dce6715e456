"""A teacher, a student distilled from its features without labels, and the student's head, with lightly-train."""

import lightly_train

CLASSES = {label: f"digit{label}" for label in range(10)}
SMALL = {"image_size": (32, 32)}
DISTILLED = {"backbone_weights": "out/distilled/exported_models/exported_last.pt"}


def classify(out, model, **options):
    lightly_train.train_image_classification(
        out=out,
        model=model,
        data={"train": "pictures/train", "val": "pictures/val", "classes": CLASSES},
        steps=50,
        batch_size=50,
        accelerator="cpu",
        precision="32-true",
        num_workers=0,
        transform_args=SMALL,
        **options,
    )


def distil():
    teacher = lightly_train.load_model("out/teacher/exported_models/exported_best.pt").backbone.get_model()
    lightly_train.pretrain(
        out="out/distilled",
        data="pictures/train",
        model="timm/resnet10t",
        method="distillation",
        method_args={"teacher": teacher},
        epochs=5,
        batch_size=50,
        accelerator="cpu",
        num_workers=0,
        transform_args=SMALL,
    )


if __name__ == "__main__":
    classify("out/teacher", "timm/resnet18")
    distil()
    classify("out/student", "timm/resnet10t", model_args=DISTILLED)
