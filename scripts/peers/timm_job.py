"""A teacher and a distilled student with timm, whose wheel has the losses and the models and leaves the loop to you."""

import torch
from timm import create_model
from timm.data import create_dataset, create_loader
from timm.task import ClassificationTask, LogitDistillationTask


def loader(split, training):
    dataset = create_dataset("", root="pictures", split=split)
    return create_loader(
        dataset, (3, 32, 32), 50, is_training=training, no_aug=True, use_prefetcher=False, num_workers=0, device="cpu"
    )


def fit(task, model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)
    for _ in range(5):
        task.train()
        for images, labels in loader("train", True):
            loss = task(images, labels)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        hits = torch.cat([model(images).argmax(1) == labels for images, labels in loader("val", False)])
    print(f"accuracy {hits.float().mean():.4f}")


torch.manual_seed(0)
teacher = create_model("resnet18", num_classes=10)
fit(ClassificationTask(teacher, torch.nn.CrossEntropyLoss()), teacher)
student = create_model("resnet10t", num_classes=10)
fit(
    LogitDistillationTask(student, teacher, torch.nn.CrossEntropyLoss(), task_loss_weight=0.1, temperature=4.0), student
)
torch.save(student.state_dict(), "student.pt")
