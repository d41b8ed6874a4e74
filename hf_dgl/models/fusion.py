"""Fusions: from the tokens of whichever modalities are there to one vector per row.

Each reads `tokens {modality: [B, T, W]}` and `masks {modality: BoolTensor[B, T]}` of the *present* modalities, in the
order of `config.modalities`, and returns `[B, output_size]`. A modality may be absent from the whole batch (left out
of both dicts) or from single rows (masked in all its tokens there); a row then gets exactly what it would get in a
batch without that modality. Nothing is NaN, whatever is masked.

Shapes: B rows, T tokens (differs per modality), W fusion width, M modalities of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .attention import FusionLayer, attention_mask
from .configuration_cross_modal import CrossModalConfig

Tokens = Mapping[str, Tensor]


class UnitScaleLinear(nn.Linear):
    """Linear layer that keeps the scale of its inputs at the start, whatever the widths (Xavier initialisation)."""


class ModalityProjection(nn.Module):
    """LayerNorm and a linear map from an encoder's tokens `[B, T, D]` to the fusion's width `[B, T, W]`.

    The norm makes encoders of very different scale (raw CLIP tokens, SigLIP's normalised ones) alike. No position is
    added: an encoder's tokens know theirs.
    """

    def __init__(self, config: CrossModalConfig, encoder_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(encoder_width, eps=config.layer_norm_eps)
        self.linear = UnitScaleLinear(encoder_width, config.fusion_hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.linear(self.norm(hidden_states.to(self.norm.weight.dtype)))


def masked_mean(hidden_states: Tensor, mask: Tensor) -> Tensor:
    """Mean over unmasked tokens: `[B, T, W]`, `BoolTensor[B, T]` -> `[B, W]`, zero where all are masked."""
    kept = hidden_states.masked_fill(~mask[:, :, None], 0.0)
    return kept.sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1)


def stack_pooled(tokens: Tokens, masks: Tokens) -> tuple[Tensor, Tensor]:
    """Masked mean of every present modality: `[B, present, W]`, and which are there in which row: `[B, present]`."""
    pooled = torch.stack([masked_mean(tokens[name], masks[name]) for name in tokens], dim=1)
    return pooled, torch.stack([masks[name].any(dim=1) for name in tokens], dim=1)


class ConcatFusion(nn.Module):
    """Pooled features side by side: `[z_1; ...; z_M]`; the part of an absent modality is zero (the paper's form)."""

    def __init__(self, config: CrossModalConfig) -> None:
        super().__init__()
        self.modalities = list(config.modalities)
        self.output_size = len(self.modalities) * config.fusion_hidden_size

    def forward(self, tokens: Tokens, masks: Tokens) -> Tensor:
        pooled = {name: masked_mean(tokens[name], masks[name]) for name in tokens}
        nothing = torch.zeros_like(next(iter(pooled.values())))
        return torch.cat([pooled.get(name, nothing) for name in self.modalities], dim=-1)


class SumFusion(nn.Module):
    """Sum of pooled features; the term of an absent modality is dropped (the paper's form)."""

    def __init__(self, config: CrossModalConfig) -> None:
        super().__init__()
        self.output_size = config.fusion_hidden_size

    def forward(self, tokens: Tokens, masks: Tokens) -> Tensor:
        pooled, _ = stack_pooled(tokens, masks)
        return pooled.sum(dim=1)


class GatedFusion(nn.Module):
    """`sigmoid(z_a) * z_b`: the first present modality gates the mean of the others; alone it gates itself.

    The paper's form for two modalities, `a` before `b` in `config.modalities`. In its code the projections never get
    a gradient; here they are the `ModalityProjection`s, trained by the fused loss.
    """

    def __init__(self, config: CrossModalConfig) -> None:
        super().__init__()
        self.output_size = config.fusion_hidden_size

    def forward(self, tokens: Tokens, masks: Tokens) -> Tensor:
        pooled, present = stack_pooled(tokens, masks)  # [B, present, W], [B, present]
        is_first = present & (present.cumsum(dim=1) == 1)
        is_other = present & ~is_first
        gate = (pooled * is_first[:, :, None]).sum(dim=1)
        others = (pooled * is_other[:, :, None]).sum(dim=1) / is_other.sum(dim=1, keepdim=True).clamp(min=1)
        gated = torch.where(is_other.any(dim=1, keepdim=True), others, gate)
        return torch.sigmoid(gate) * gated


class BilinearFusion(nn.Module):
    """Outer products of low-dimensional projections, mean over pairs of present modalities; alone `z z^T`.

    `output_size` is `bilinear_size ** 2`.

    Args:
        config: Of the model.
        zero_alone: Whether a modality alone gives zeros, in place of its product with itself.
    """

    def __init__(self, config: CrossModalConfig, zero_alone: bool = False) -> None:
        super().__init__()
        self.zero_alone = zero_alone
        self.low_rank = nn.ModuleDict(
            {name: UnitScaleLinear(config.fusion_hidden_size, config.bilinear_size) for name in config.modalities}
        )
        self.output_size = config.bilinear_size**2

    def forward(self, tokens: Tokens, masks: Tokens) -> Tensor:
        pooled, present = stack_pooled(tokens, masks)
        low = torch.stack([self.low_rank[name](pooled[:, i]) for i, name in enumerate(tokens)], dim=1)  # [B, m, k]
        # [B, m, m]: the pairs i < j of modalities that are both there, or the one modality with itself.
        both = present[:, :, None] & present[:, None, :]
        pairs = both.triu(diagonal=1)
        if not self.zero_alone:
            pairs = pairs | (both & (present.sum(dim=1) == 1)[:, None, None])
        weights = pairs / pairs.sum(dim=(1, 2), keepdim=True).clamp(min=1)
        return torch.einsum("bij,bik,bjl->bkl", weights.to(low.dtype), low, low).flatten(1)


class _AttentionFusion(nn.Module):
    """What both attention fusions share: modality embeddings and the read-out.

    Read-out: per modality a final LayerNorm and the masked mean; side by side, zeros for an absent modality. With
    `fusion_read_out="products"` these are followed by what `BilinearFusion` makes of the tokens before the first
    layer, zeros for a modality alone.

    Why: the classifier then finds products of two modalities' features from the first step on. From means alone,
    attention and feed-forward layers have to form them first, out of a gradient that is next to nothing while they
    do not: joint training on `sample:sum_mod_3` (ten epochs) stayed at .34 with two layers of cross-attention, chance,
    and reaches .96 with products (a bilinear fusion: .97). Larger initial weights (Xavier's, PyTorch's), post-norm, no
    dropout, a feed-forward read-out, an element-wise product, half the learning rate: each left it at chance with one
    layer; the norm of gradients was below the clipping's 5.0. Products of what the *last* layer left learn as fast
    there, but not where layers make a noise at first: .63 on two pictures' digits with two layers, learning rate 2e-3
    without warm-up, where those of the tokens reach .85, as a bilinear fusion does. Table: recipes/results/methods.md.
    """

    def __init__(self, config: CrossModalConfig) -> None:
        super().__init__()
        self.modalities = list(config.modalities)
        self.modality_embeddings = nn.Embedding(len(self.modalities), config.fusion_hidden_size)
        self.dropout = nn.Dropout(config.fusion_dropout)
        self.final_norm = nn.ModuleDict(
            {name: nn.LayerNorm(config.fusion_hidden_size, eps=config.layer_norm_eps) for name in self.modalities}
        )
        self.read_out = ConcatFusion(config)
        self.output_size = self.read_out.output_size
        self.products: BilinearFusion | None = None
        if config.fusion_read_out == "products" and len(self.modalities) > 1:
            self.products = BilinearFusion(config, zero_alone=True)
            self.output_size += self.products.output_size

    def embed(self, tokens: Tokens) -> dict[str, Tensor]:
        weight = self.modality_embeddings.weight
        return {name: self.dropout(states + weight[self.modalities.index(name)]) for name, states in tokens.items()}

    def read(self, states: Tokens, tokens: Tokens, masks: Tokens) -> Tensor:
        """What the last layer left, and the `tokens` that the first one was given, to `[B, output_size]`."""
        means = self.read_out({name: self.final_norm[name](state) for name, state in states.items()}, masks)
        return means if self.products is None else torch.cat([means, self.products(tokens, masks)], dim=-1)


class CrossAttentionFusion(_AttentionFusion):
    """Dense cross-attention: every modality has its own layers, and attends to all others at every layer.

    A layer is self-attention, cross-attention to the other modalities' tokens of the layer before, feed-forward. A
    modality alone skips the cross-attention.
    """

    def __init__(self, config: CrossModalConfig) -> None:
        super().__init__(config)
        self.num_layers = config.num_fusion_layers
        has_context = len(self.modalities) > 1
        self.layers: Any = nn.ModuleDict(
            {
                name: nn.ModuleList([FusionLayer(config, has_context) for _ in range(config.num_fusion_layers)])
                for name in self.modalities
            }
        )

    def forward(self, tokens: Tokens, masks: Tokens) -> Tensor:
        states = self.embed(tokens)
        others = {name: [other for other in states if other != name] for name in states}
        self_masks = {name: attention_mask(states[name].shape[1], masks[name]) for name in states}
        context_masks, has_context = {}, {}
        if len(states) > 1:
            for name in states:
                mask = torch.cat([masks[other] for other in others[name]], dim=1)
                context_masks[name] = attention_mask(states[name].shape[1], mask)
                has_context[name] = mask.any(dim=1)
        for layer in range(self.num_layers):
            before = states
            states = {
                name: self.layers[name][layer](
                    before[name],
                    self_masks[name],
                    torch.cat([before[other] for other in others[name]], dim=1) if others[name] else None,
                    context_masks.get(name),
                    has_context.get(name),
                )
                for name in before
            }
        return self.read(states, tokens, masks)


class MergedAttentionFusion(_AttentionFusion):
    """One transformer over the tokens of all present modalities, told apart by modality embeddings."""

    def __init__(self, config: CrossModalConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList([FusionLayer(config, has_context=False) for _ in range(config.num_fusion_layers)])

    def forward(self, tokens: Tokens, masks: Tokens) -> Tensor:
        embedded = self.embed(tokens)
        states = torch.cat(list(embedded.values()), dim=1)
        mask = attention_mask(states.shape[1], torch.cat([masks[name] for name in embedded], dim=1))
        for layer in self.layers:
            states = layer(states, mask)
        lengths = [part.shape[1] for part in embedded.values()]
        return self.read(dict(zip(embedded, states.split(lengths, dim=1), strict=True)), tokens, masks)


FUSIONS: dict[str, type[nn.Module]] = {
    "cross_attention": CrossAttentionFusion,
    "merged_attention": MergedAttentionFusion,
    "concat": ConcatFusion,
    "sum": SumFusion,
    "gated": GatedFusion,
    "bilinear": BilinearFusion,
}


def init_fusion_weights(module: nn.Module, std: float) -> None:
    """Initialises one module of the fusion or the classifier, unless it has been loaded."""
    if isinstance(module, UnitScaleLinear):
        init.xavier_uniform_(module.weight)
        init.zeros_(module.bias)
    elif isinstance(module, nn.Linear):
        init.normal_(module.weight, std=std)
        init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        init.normal_(module.weight, std=std)
    elif isinstance(module, nn.LayerNorm):
        init.ones_(module.weight)
        init.zeros_(module.bias)
