"""PIM: a plug-in module for fine-grained classification over any backbone with four stages.

Chou, Lin & Kao 2022, "A Novel Plug-in Module for Fine-Grained Visual Classification",
https://arxiv.org/abs/2202.03822. In shapes N is the batch, C `fpn_size`, S a stage's positions, k its selected ones,
T the selected ones of all stages, J the combiner's nodes, K the classes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nets.support.backbones import build_backbone
from nets.support.errors import NetError
from nets.support.rates import require_rate
from nets.support.timm_builder import TimmStages
from nets.support.timm_names import PREFIX, is_timm

STAGES = {  # by the start of torchvision's names: four modules, from stride 4 to 32
    "resn": ("layer1", "layer2", "layer3", "layer4"),
    "wide_resnet": ("layer1", "layer2", "layer3", "layer4"),
    "efficientnet_b": ("features.2", "features.3", "features.5", "features.7"),
    "swin": ("features.1", "features.3", "features.5", "features.7"),
    "convnext": ("features.1", "features.3", "features.5", "features.7"),
    "regnet": ("trunk_output.block1", "trunk_output.block2", "trunk_output.block3", "trunk_output.block4"),
}
PUBLISHED_STAGES = {  # where the published code takes them elsewhere: strides 8, 16, 32, 32 and 16, 16, 32, 32
    "efficientnet_b": ("features.4", "features.5", "features.6", "features.7"),
    "swin": ("features.2", "features.4", "features.6", "features.7"),  # three of them behind patch merging
}
SHARE = 2 / 9  # of a stage's positions
SWIN_SHARES = (8 / 9, 8 / 9, 8 / 9, 2 / 9)  # the published 2048, 512, 128 and 32 of Swin-L at 384 px
CNN_COUNTS = (32, 32, 32, 32)  # published for 448 px
CHANNELS_LAST = ("swin",)  # their feature maps are (N, H, W, C)
HEADS = ("all", "stage1", "stage2", "stage3", "stage4", "combiner")
POSITIONS_PER_NODE = 32  # T // 32 nodes in the combiner
MAX_FPN_SIZE = 8192  # whose four stages take 1 GiB
LEAST_SCORE = 1e-30  # under the logarithm: no class is impossible


@dataclass(frozen=True)
class PimOutputs:
    """PIM's outputs for a batch: the logits that its losses need, and the selected positions.

    Where selection is off, all positions are selected, row by row, and none dropped.
    """

    stage_logits: tuple[torch.Tensor, ...]  # four (N, S, K), positions row by row
    selected_logits: tuple[torch.Tensor, ...]  # four (N, k, K), best position first
    dropped_logits: tuple[torch.Tensor, ...]  # four (N, S - k, K) in training, (N, 0, K) in eval mode
    selected: tuple[torch.Tensor, ...]  # four (N, k) int64: positions, row by row
    combiner_logits: torch.Tensor | None  # (N, K); None where the combiner is off


class PIM(nn.Module):
    """PIM over a backbone of `nets.support.backbones`: images (N, C, H, W) to logits (N, num_classes).

    The scores are the mean of the softmaxes of the four stages (their logits averaged over positions) and the
    combiner; the logits are their logarithm. `head` names one of HEADS whose logits to return instead.
    `num_selects` are positions per stage: integers are counts, fractions below 1 (or 1.0) a share of the stage; the
    default is 2/9 of each. `stages` names four modules of a backbone that is neither in STAGES nor timm's.
    `published_stages` takes the maps where the published code does: Swin's behind patch merging, EfficientNet's from
    stride 16 on; the default is then 8/9, 8/9, 8/9 and 2/9 of the positions for a Swin, and 32 a stage for a CNN.
    Raises NetError.

    Departures: without `published_stages` the maps lie at strides 4, 8, 16 and 32 for every backbone. The first
    three of Swin have four times the published positions then, of which 2/9 are the published counts. The FPN of a
    token backbone upsamples bilinearly as that of a CNN does, not by a learnt convolution over positions, which
    would fix the input size and cost 1.41 million weights at 384 px.
    """

    task = "pim"

    def __init__(
        self,
        model_type: str = "resnet50",
        num_classes: int = 10,
        num_channels: int = 3,
        img_height: int = 384,
        img_width: int = 384,
        fpn_size: int = 512,
        num_selects: list[float] = [],  # noqa: B006  # read, never changed
        use_fpn: bool = True,
        use_selection: bool = True,
        use_combiner: bool = True,
        dropout: float = 0.1,
        head: str = "all",
        stages: list[str] = [],  # noqa: B006
        published_stages: bool = False,
    ) -> None:
        super().__init__()
        require_rate("dropout", dropout)
        if head not in HEADS or (head == "combiner" and not use_combiner):
            raise NetError(f'head must be one of {", ".join(HEADS[: 6 if use_combiner else 5])}, got "{head}"')
        if not 1 <= fpn_size <= MAX_FPN_SIZE:
            raise NetError(f"fpn_size must be from 1 to {MAX_FPN_SIZE}, got {fpn_size}")
        self.head = head
        self.use_selection = use_selection
        self.is_channels_last = model_type.startswith(CHANNELS_LAST)
        names = stages or _stages_of(model_type, published_stages)
        self.backbone = _backbone(model_type, num_channels, (img_height, img_width), names)
        maps = self._map_sizes(num_channels, img_height, img_width)
        selects = num_selects or _default_selects(model_type, published_stages)
        self.counts = _select_counts(selects if use_selection else [1.0] * 4, [h * w for _, h, w in maps])
        self.fpn = FeaturePyramid([channels for channels, _, _ in maps], fpn_size, top_down=use_fpn)
        self.heads = nn.ModuleList(_position_head(fpn_size, num_classes) for _ in maps)
        self.combiner = Combiner(sum(self.counts), fpn_size, num_classes, dropout) if use_combiner else None
        self.head_names = tuple(f"heads.{stage}.3" for stage in range(4)) + ("combiner.classifier",) * use_combiner

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits(self.outputs(images))

    def outputs(self, images: torch.Tensor) -> PimOutputs:
        """Return the logits of every stage, position and the combiner, and the selected positions."""
        features = self.fpn(self.feature_maps(images))  # four (N, C, H, W)
        all_logits, kept, dropped, chosen, tokens = [], [], [], [], []
        for head, feature, count in zip(self.heads, features, self.counts, strict=True):
            logits = head(feature).flatten(2).transpose(1, 2)  # (N, K, H, W) to (N, S, K)
            positions = feature.flatten(2).transpose(1, 2)  # (N, C, H, W) to (N, S, C)
            ranked, token, order = self.select(logits, positions, count)
            all_logits.append(logits)
            kept.append(ranked[:, :count])
            dropped.append(ranked[:, count:])
            chosen.append(order[:, :count])
            tokens.append(token)
        combined = None
        if self.combiner is not None:
            combined = self.combiner(torch.cat(tokens, dim=1).transpose(1, 2))  # (N, C, T) -> (N, K)
        return PimOutputs(tuple(all_logits), tuple(kept), tuple(dropped), tuple(chosen), combined)

    def select(
        self, logits: torch.Tensor, features: torch.Tensor, count: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Select the `count` positions of highest confidence, from a stage's logits (N, S, K) and features (N, S, C).

        Returns the logits of the positions in their order, the features (N, k, C) of the selected ones, and the order:
        all S positions in training, whose loss needs the dropped ones, the selected k in eval mode.
        """
        if not self.use_selection:
            return logits, features, torch.arange(count, device=logits.device).expand(logits.shape[0], -1)
        order = self._ranking(logits, count)  # (N, S) or (N, k)
        return _gather(logits, order), _gather(features, order[:, :count]), order

    def logits(self, outputs: PimOutputs, head: str = "") -> torch.Tensor:
        """Return the logits (N, K) of a head of HEADS, by default the one that the net was built with."""
        head = head or self.head
        if head == "all":
            scores = torch.stack([logits.float().softmax(dim=1) for logits in self.head_logits(outputs).values()])
            # (heads, N, K) to (N, K)
            return scores.mean(dim=0).clamp(min=LEAST_SCORE).log()
        return self.head_logits(outputs)[head]

    def head_logits(self, outputs: PimOutputs) -> dict[str, torch.Tensor]:
        """Return the logits (N, K) of each stage, averaged over its positions, and of the combiner, by name."""
        logits = {f"stage{number}": logits.mean(dim=1) for number, logits in enumerate(outputs.stage_logits, 1)}
        if outputs.combiner_logits is not None:
            logits["combiner"] = outputs.combiner_logits
        return logits

    def feature_maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the four stages' feature maps (N, C, H, W), from stride 4 to 32."""
        maps = list(self.backbone(images).values())
        for stage, x in enumerate(maps, 1):
            if getattr(x, "ndim", 0) != 4:  # a token net's (N, L, C), a head's (N, K), several tensors
                shape = tuple(getattr(x, "shape", ())) or type(x).__name__
                raise NetError(f"stage {stage} of the backbone gives {shape}, no feature map (N, C, H, W)")
        return [x.permute(0, 3, 1, 2) for x in maps] if self.is_channels_last else maps  # (N, H, W, C) to (N, C, H, W)

    def _ranking(self, logits: torch.Tensor, count: int) -> torch.Tensor:
        """Rank positions by their highest softmax: (N, S, K) to (N, S), or (N, k) where the dropped are not needed."""
        confidence = logits.float().softmax(dim=2).amax(dim=2)  # (N, S)
        return confidence.topk(confidence.shape[1] if self.training else count, dim=1).indices

    def _map_sizes(self, num_channels: int, height: int, width: int) -> list[tuple[int, int, int]]:
        """Return (channels, height, width) of the four feature maps. Raises NetError for too small images."""
        was_training = self.backbone.training
        self.backbone.eval()
        try:
            with torch.no_grad():
                maps = self.feature_maps(torch.zeros(1, num_channels, height, width))
        except RuntimeError as error:
            raise NetError(f"the backbone does not take images of {height}x{width} px: {error}") from error
        finally:
            self.backbone.train(was_training)
        return [(x.shape[1], x.shape[2], x.shape[3]) for x in maps]

    def __deepcopy__(self, memo: dict[int, Any]) -> PIM:
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__ = copy.deepcopy(self.__dict__, memo)
        copied.backbone.train(self.backbone.training)  # torchvision's copy is always in training mode
        return copied


class FeaturePyramid(nn.Module):
    """Feature pyramid (Lin et al. 2017): four maps (N, C_i, H_i, W_i) to four of `fpn_size` channels.

    Two 1x1 convolutions with a ReLU between them project each stage; with `top_down` each has the stage above it added,
    upsampled bilinearly.
    """

    def __init__(self, channels: Sequence[int], fpn_size: int, top_down: bool) -> None:
        super().__init__()
        self.top_down = top_down
        self.projections = nn.ModuleList(
            nn.Sequential(nn.Conv2d(count, count, 1), nn.ReLU(), nn.Conv2d(count, fpn_size, 1)) for count in channels
        )

    def forward(self, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        features = [project(x) for project, x in zip(self.projections, maps, strict=True)]
        if self.top_down:
            for stage in (2, 1, 0):
                size = features[stage].shape[2:]
                above = nn.functional.interpolate(features[stage + 1], size, mode="bilinear", align_corners=False)
                features[stage] = features[stage] + above
        return features


class Combiner(nn.Module):
    """A graph convolution over the selected positions: (N, C, T) to logits (N, K)."""

    def __init__(self, positions: int, fpn_size: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        nodes = max(1, positions // POSITIONS_PER_NODE)
        self.pool = nn.Linear(positions, nodes)
        self.adjacency = nn.Parameter(torch.eye(nodes) / 100 + 1 / 100)  # (J, J)
        self.query = nn.Conv1d(fpn_size, max(1, fpn_size // 4), 1)
        self.key = nn.Conv1d(fpn_size, max(1, fpn_size // 4), 1)
        self.alpha = nn.Parameter(torch.zeros(1))
        self.conv = nn.Conv1d(fpn_size, fpn_size, 1)
        self.norm = nn.BatchNorm1d(fpn_size)
        self.merge = nn.Linear(nodes, 1)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(fpn_size, num_classes)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.pool(tokens)  # (N, C, J)
        query, key = self.query(x).mean(dim=1), self.key(x).mean(dim=1)  # (N, J) each
        similarity = torch.tanh(query.unsqueeze(2) - key.unsqueeze(1))  # (N, J, J)
        x = self.conv(x) @ (self.adjacency + self.alpha * similarity)  # (N, C, J)
        x = self.merge(self.norm(x)).flatten(1)  # (N, C)
        logits: torch.Tensor = self.classifier(self.dropout(x))
        return logits


def _position_head(fpn_size: int, num_classes: int) -> nn.Sequential:
    """Build the head of a stage: features (N, C, H, W) to the logits of every position, (N, K, H, W)."""
    return nn.Sequential(
        nn.Conv2d(fpn_size, fpn_size, 1), nn.BatchNorm2d(fpn_size), nn.ReLU(), nn.Conv2d(fpn_size, num_classes, 1)
    )


def _gather(x: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Return positions of (N, S, C) in an order (N, k), as (N, k, C)."""
    return x.gather(1, order.unsqueeze(2).expand(-1, -1, x.shape[2]))


def _stages_of(model_type: str, published: bool) -> Sequence[str]:
    """Return the names of a backbone's four stages; none where it is not known."""
    known = STAGES | (PUBLISHED_STAGES if published else {})
    return next((names for start, names in known.items() if model_type.startswith(start)), ())


def _default_selects(model_type: str, published: bool) -> Sequence[float]:
    """Return the positions to select per stage where the config names none."""
    if not published:
        return (SHARE,) * 4
    return SWIN_SHARES if model_type.startswith("swin") else CNN_COUNTS


def _backbone(model_type: str, num_channels: int, size_px: tuple[int, int], stages: Sequence[str]) -> nn.Module:
    """Build a net up to its four stages: images to a dict of their feature maps, in order."""
    if is_timm(model_type) and not stages:
        return TimmStages(model_type.removeprefix(PREFIX), num_channels, size_px)
    from torchvision.models.feature_extraction import create_feature_extractor

    net = build_backbone(model_type, num_channels, size_px)
    names = list(stages or getattr(net, "stage_names", ()))
    if len(names) != 4 or len(set(names)) != 4:
        raise NetError(
            f'name four different modules of "{model_type}" in model_args.stages, from stride 4 to 32, got {names}'
        )
    modules = [name for name, _ in net.named_modules() if name]  # "" is the net itself
    if missing := [name for name in names if name not in modules]:
        absent = ", ".join(f'"{name}"' for name in missing)
        raise NetError(f'"{model_type}" has no module {absent}; it has {", ".join(modules[:8])}, ...')
    stages_by_name = {name: f"stage{n}" for n, name in enumerate(names, 1)}
    # It warns of nodes that differ between training and eval mode: they belong to heads that are left out.
    extractor: nn.Module = create_feature_extractor(net, stages_by_name, suppress_diff_warning=True)
    return extractor


def _select_counts(num_selects: Sequence[float], positions: Sequence[int]) -> list[int]:
    """Return the number of positions to select per stage. Raises NetError."""
    if len(num_selects) != len(positions):
        raise NetError(f"num_selects needs {len(positions)} entries, one a stage, got {list(num_selects)}")
    counts = []
    for stage, (select, available) in enumerate(zip(num_selects, positions, strict=True), 1):
        is_share = isinstance(select, float)
        if not (0 < select <= 1 if is_share else 1 <= select <= available):
            raise NetError(
                f"num_selects: stage {stage} has {available} positions at this input size, {select} cannot be "
                "selected; fractions such as 0.22 fit any size"
            )
        counts.append(max(1, round(select * available)) if is_share else int(select))
    return counts
