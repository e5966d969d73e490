"""LinkNet34 on a data set of the PIE-Engine platform, as users write it: all access is by the platform's aiUtils."""
# mypy: ignore-errors

import io
import json
import os

import numpy as np
import torch
import torchvision
from aiUtils import aiUtils
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

with open("traincfg.json", encoding="utf-8") as file:
    args = json.load(file)
width, height = (max(32, round(int(side) / 32) * 32) for side in args["load_size"].split(","))
classes = json.loads(args["label"])
os.makedirs("output/files", exist_ok=True)
os.makedirs("output/picture", exist_ok=True)


class Decoder(nn.Module):
    def __init__(self, before, after):
        super().__init__()
        middle = before // 4
        self.layers = nn.Sequential(
            nn.Conv2d(before, middle, 1), nn.BatchNorm2d(middle), nn.ReLU(),
            nn.ConvTranspose2d(middle, middle, 3, 2, 1, 1), nn.BatchNorm2d(middle), nn.ReLU(),
            nn.Conv2d(middle, after, 1), nn.BatchNorm2d(after), nn.ReLU(),
        )  # fmt: skip

    def forward(self, x):
        return self.layers(x)


class LinkNet34(nn.Module):
    def __init__(self, n_class):
        super().__init__()
        resnet = torchvision.models.resnet34(weights=None)
        self.first = nn.Sequential(resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool)
        self.encoders = nn.ModuleList([resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4])
        self.decoders = nn.ModuleList([Decoder(512, 256), Decoder(256, 128), Decoder(128, 64), Decoder(64, 64)])
        self.last = nn.Sequential(nn.ConvTranspose2d(64, 32, 2, 2), nn.ReLU(), nn.Conv2d(32, n_class, 1))

    def forward(self, x):
        maps = [self.first(x)]
        for encoder in self.encoders:
            maps.append(encoder(maps[-1]))
        y = maps.pop()
        for decoder, skip in zip(self.decoders, [*reversed(maps[1:]), None]):
            y = decoder(y) + (0 if skip is None else skip)
        return self.last(y)


class Images(Dataset):
    def __init__(self, access, path):
        self.access, self.keys = access, access.getImages(path)

    def __len__(self):
        return len(self.keys)

    def __getitem__(self, index):
        key = self.keys[index]
        image = Image.open(io.BytesIO(self.access.getImgXmlArray(key))).convert("RGB").resize((width, height))
        label_key = key.replace("images", "labels")
        label = Image.open(io.BytesIO(self.access.getImgXmlArray(label_key))).resize((width, height), Image.NEAREST)
        values, target = np.array(label), np.full((height, width), 255)
        for number, row in enumerate(classes):
            target[values == int(row["class_value"])] = number
        return torch.tensor(np.array(image)).permute(2, 0, 1) / 255.0, torch.tensor(target)


access = aiUtils.s3GetImg(args["dataset_id"] or None)
train_data, valid_data = (Images(access, access.path + f"{split}/images") for split in ("train", "valid"))
net = LinkNet34(len(classes))
weights = f"output/files/{args['model_name']}.th"
if args["resume_path"]:
    key = "/".join(args["resume_path"].split("/")[3:]) + f"/{args['model_name']}.th"
    if access.downS3Weight("start.th", key):
        net.load_state_dict(torch.load("start.th"))
        print("resumed")
optimizer = torch.optim.Adam(net.parameters(), lr=float(args["learning_rate"]))
criterion = nn.CrossEntropyLoss(ignore_index=255)
log = {"training_id": args["training_id"], "epochs": []}
for epoch in range(1, int(args["epochs"]) + 1):
    net.train()
    for images, targets in DataLoader(train_data, int(args["batch_size"]), shuffle=True):
        optimizer.zero_grad()
        loss = criterion(net(images), targets)
        loss.backward()
        optimizer.step()
    net.eval()
    with torch.no_grad():
        right = [(net(x[None])[0].argmax(0) == y).float().mean().item() for x, y in valid_data]
    Image.fromarray((valid_data[0][0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)).save("output/picture/image.png")
    torch.save(net.state_dict(), weights)
    log["epochs"].append({"epoch": str(epoch), "accuracy": sum(right) / len(right)})
    with open("output/trainlog.json", "w", encoding="utf-8") as file:
        json.dump(log, file)
    print(f"[Process: {epoch}/{args['epochs']}]", flush=True)
