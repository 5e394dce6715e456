"""A teacher and a distilled student with torchdistill, whose wheel has the boxes and the losses and leaves the loop to
you. Its examples keep such configurations in a YAML file."""

import timm
import torch
from torch.utils.data import RandomSampler, SequentialSampler
from torchdistill.core.distillation import get_distillation_box
from torchdistill.core.training import get_training_box
from torchvision import transforms
from torchvision.datasets import ImageFolder

normalise = transforms.Compose(
    [transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
)
datasets = {split: ImageFolder(f"pictures/{split}", normalise) for split in ("train", "val")}


def config(criterion):
    return {
        "num_epochs": 5,
        "train_data_loader": {
            "dataset_id": "train",
            "sampler": {"class_or_func": RandomSampler},
            "kwargs": {"batch_size": 50},
        },
        "val_data_loader": {
            "dataset_id": "val",
            "sampler": {"class_or_func": SequentialSampler},
            "kwargs": {"batch_size": 50},
        },
        "teacher": {"requires_grad": False, "forward_proc": "forward_batch_only"},
        "student": {"forward_proc": "forward_batch_only"},
        "model": {"forward_proc": "forward_batch_only"},
        "optimizer": {"key": "SGD", "kwargs": {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}},
        "scheduler": {"key": "CosineAnnealingLR", "kwargs": {"T_max": 5}},
        "criterion": {
            "key": "WeightedSumLoss",
            "func2extract_model_loss": "extract_model_loss_dict",
            "kwargs": {"sub_terms": {"loss": {"weight": 1.0} | criterion}},
        },
    }


def fit(box, model):
    for epoch in range(box.num_epochs):
        box.pre_epoch_process(epoch=epoch)
        for images, labels, supplement in box.train_data_loader:
            box.post_forward_process(loss=box.forward_process(images, labels, supplement))
        box.post_epoch_process()
    model.eval()
    with torch.no_grad():
        hits = torch.cat([model(images).argmax(1) == labels for images, labels in box.val_data_loader])
    print(f"accuracy {hits.float().mean():.4f}")


torch.manual_seed(0)
device = torch.device("cpu")
teacher = timm.create_model("resnet18", num_classes=10)
student = timm.create_model("resnet10t", num_classes=10)
labels_only = {
    "criterion": {"key": "CrossEntropyLoss", "kwargs": {}},
    "criterion_wrapper": {
        "key": "SimpleLossWrapper",
        "kwargs": {
            "input": {"is_from_teacher": False, "module_path": ".", "io": "output"},
            "target": {"uses_label": True},
        },
    },
}
hinton = {
    "criterion": {
        "key": "KDLoss",
        "kwargs": {
            "student_module_path": ".",
            "student_module_io": "output",
            "teacher_module_path": ".",
            "teacher_module_io": "output",
            "temperature": 4.0,
            "alpha": 0.1,
        },
    }
}
fit(get_training_box(teacher, datasets, config(labels_only), device, None, False, 1), teacher)
fit(get_distillation_box(teacher, student, datasets, config(hinton), device, None, False, 1), student)
torch.save(student.state_dict(), "student.pt")
