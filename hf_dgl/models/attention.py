"""Transformer layers of the attention fusions: pre-norm, on transformers' attention interface (SDPA by default).

Shapes: B rows, Q query tokens, K key tokens, W fusion width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_cross_modal import CrossModalConfig


def attention_mask(num_queries: int, key_mask: Tensor) -> Tensor:
    """`BoolTensor[B, K]` (True: may be attended to) -> `BoolTensor[B, 1, Q, K]` for all heads and queries.

    A row in which all keys are masked attends to all of them instead: softmax over nothing is NaN. Whoever calls must
    discard what such a row gets.
    """
    key_mask = key_mask | ~key_mask.any(dim=1, keepdim=True)
    return key_mask[:, None, None, :].expand(-1, 1, num_queries, -1)


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Attention written out, for `attn_implementation="eager"`. Heads in `[B, heads, Q, W / heads]`."""
    scores = query @ key.transpose(-1, -2) * scaling
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).masked_fill(~attention_mask, float("-inf"))
    weights = nn.functional.dropout(scores.softmax(dim=-1).to(value.dtype), p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class FusionAttention(nn.Module):
    """Multi-head attention from `queries` to `context` (or to themselves).

    `"eager"` is written out, all else is SDPA: upstream's flash interface drops *queries* where keys are masked,
    which is right for self-attention only. Encoders use what the configuration says.
    """

    is_causal = False

    def __init__(self, config: CrossModalConfig) -> None:
        super().__init__()
        width = config.fusion_hidden_size
        self.config = config
        self.head_size = width // config.num_fusion_heads
        self.scaling = self.head_size**-0.5
        self.dropout = config.fusion_dropout
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, queries: Tensor, context: Tensor, attention_mask: Tensor) -> Tensor:
        """`queries [B, Q, W]`, `context [B, K, W]`, mask as made by `attention_mask(...)` -> `[B, Q, W]`."""

        def heads(states: Tensor) -> Tensor:
            return states.unflatten(-1, (-1, self.head_size)).transpose(1, 2)

        is_eager = self.config._attn_implementation == "eager"
        attend: Callable = eager_attention if is_eager else ALL_ATTENTION_FUNCTIONS["sdpa"]
        output, _ = attend(
            self,
            heads(self.q_proj(queries)),
            heads(self.k_proj(context)),
            heads(self.v_proj(context)),
            attention_mask,
            scaling=self.scaling,
            dropout=self.dropout if self.training else 0.0,
        )
        return self.out_proj(output.flatten(2))


class FusionMLP(nn.Module):
    """Feed-forward layer."""

    def __init__(self, config: CrossModalConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.fusion_hidden_size, config.fusion_intermediate_size)
        self.activation = ACT2FN[config.fusion_activation]
        self.fc2 = nn.Linear(config.fusion_intermediate_size, config.fusion_hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(hidden_states)))


class FusionLayer(GradientCheckpointingLayer):
    """Self-attention, cross-attention to a context (if `has_context`), feed-forward; pre-norm."""

    def __init__(self, config: CrossModalConfig, has_context: bool) -> None:
        super().__init__()

        def norm() -> nn.LayerNorm:
            return nn.LayerNorm(config.fusion_hidden_size, eps=config.layer_norm_eps)

        self.self_attn_norm, self.self_attn = norm(), FusionAttention(config)
        if has_context:
            self.cross_attn_norm, self.context_norm, self.cross_attn = norm(), norm(), FusionAttention(config)
        self.mlp_norm, self.mlp = norm(), FusionMLP(config)
        self.dropout = nn.Dropout(config.fusion_dropout)

    def forward(
        self,
        hidden_states: Tensor,
        self_mask: Tensor,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        row_has_context: Tensor | None = None,
    ) -> Tensor:
        """One layer.

        Args:
            hidden_states: `[B, Q, W]`.
            self_mask, context_mask: As made by `attention_mask(...)`.
            context: `[B, K, W]`, or None to leave the cross-attention out.
            row_has_context: `BoolTensor[B]`; where False that row leaves the cross-attention out.
        """
        normed = self.self_attn_norm(hidden_states)
        hidden_states = hidden_states + self.dropout(self.self_attn(normed, normed, self_mask))
        if context is not None and context_mask is not None and row_has_context is not None:
            update = self.cross_attn(self.cross_attn_norm(hidden_states), self.context_norm(context), context_mask)
            update = update.masked_fill(~row_has_context[:, None, None], 0.0)
            hidden_states = hidden_states + self.dropout(update)
        return hidden_states + self.dropout(self.mlp(self.mlp_norm(hidden_states)))
