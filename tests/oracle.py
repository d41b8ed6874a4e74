"""The gradient oracle: DGL's gradients straight from their definition, by `torch.autograd.grad`, without any routing.

Every toy model takes `only=modality` in its forward and then computes "this modality alone" by itself, so nothing here
depends on hf_dgl's passes, hooks or flags.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from tests.devices import put


def oracle(
    model: nn.Module,
    losses: Mapping[str, Callable[[], torch.Tensor]],
    owners: Mapping[str, frozenset[str]],
    alpha: Mapping[str, float],
    shares: Mapping[str, float],
    unimodal_to_fusion: bool,
) -> dict[str, torch.Tensor]:
    """Gradient of every trainable parameter, from its definition.

    Args:
        losses: `multimodal` and each modality -> a function that computes that loss afresh, nothing truncated.
        owners: Parameter name -> its modalities (empty: fusion).
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    of_loss = {}
    for term, compute in losses.items():
        grads = torch.autograd.grad(compute(), list(parameters.values()), allow_unused=True)
        of_loss[term] = {
            n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(parameters.items(), grads, strict=True)
        }
    expected = {}
    for name in parameters:
        gradient = torch.zeros_like(parameters[name])
        if not owners[name]:
            gradient = gradient + of_loss["multimodal"][name]
            if unimodal_to_fusion:
                gradient = gradient + sum(alpha[m] * of_loss[m][name] for m in alpha)
        else:
            # A parameter shared by encoders gets its share through each of them; the toys that use shares do not tie.
            gradient = gradient + max(shares[m] for m in owners[name]) * of_loss["multimodal"][name]
            gradient = gradient + sum(alpha[m] * of_loss[m][name] for m in owners[name])
        expected[name] = gradient
    return expected


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    """What is in `.grad`, zeros where there is nothing."""
    return {
        n: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for n, p in model.named_parameters()
        if p.requires_grad
    }


def max_difference(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> float:
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


# ---- toy models ----


class Toy(nn.Module):
    """Base: encoders `enc_<m>`, `features(batch)`, `fuse(features)`, and "only" = the other features are zeros."""

    modalities: Sequence[str] = ("image", "text")
    width = 6

    def __init__(self) -> None:
        super().__init__()
        for name in self.modalities:
            setattr(
                self,
                f"enc_{name}",
                nn.Sequential(nn.Linear(5, self.width), nn.Tanh(), nn.Linear(self.width, self.width)),
            )
        self.build()

    def build(self) -> None:
        raise NotImplementedError

    def encode(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return getattr(self, f"enc_{name}")(x)

    def fuse(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        raise NotImplementedError

    def features(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: self.encode(name, batch[name]) for name in self.modalities}

    def forward(self, labels: torch.Tensor | None = None, only: str | None = None, **batch: torch.Tensor) -> dict:
        features = self.features(batch)
        if only is not None:
            features = {n: f if n == only else torch.zeros_like(f) for n, f in features.items()}
        logits = self.fuse(features)
        output = {"logits": logits}
        if labels is not None:
            output["loss"] = nn.functional.cross_entropy(logits, labels)
        return output

    def declared(self) -> dict:
        return {name: {"inputs": [name], "encoder": [f"enc_{name}"]} for name in self.modalities}


class Concat(Toy):
    def build(self) -> None:
        self.head = nn.Linear(self.width * len(self.modalities), 3)

    def fuse(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.head(torch.cat([features[n].mean(1) for n in self.modalities], -1))


class ThreeConcat(Concat):
    modalities = ("image", "text", "audio")


class Attention(Toy):
    """`nn.MultiheadAttention` reads `out_proj.weight` without calling `out_proj`; the class token sits beside the
    encoders."""

    def build(self) -> None:
        self.cls_token = nn.Parameter(torch.randn(1, 1, self.width))
        self.attention = nn.MultiheadAttention(self.width, 2, batch_first=True)
        self.norm = nn.LayerNorm(self.width)
        self.head = nn.Linear(self.width, 3)

    def fuse(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        tokens = torch.cat([self.cls_token.expand(len(features["text"]), -1, -1), *features.values()], 1)
        return self.head(self.norm(tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0])[:, 0])


class ThreeAttention(Attention):
    modalities = ("image", "text", "audio")


class TiedToHead(Concat):
    """A text encoder weight is used again by the fusion (embedding and output layer): reuse would be wrong."""

    def build(self) -> None:
        super().build()
        self.mixer = nn.Linear(self.width, self.width)
        self.mixer.weight = self.enc_text[2].weight

    def fuse(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        return super().fuse({name: self.mixer(f) for name, f in features.items()})


class TiedEncoders(Concat):
    """Two encoders share a weight: it belongs to both modalities."""

    def build(self) -> None:
        super().build()
        self.enc_text[0].weight = self.enc_image[0].weight


class CalledTwice(Concat):
    """Each encoder runs on the input and on its flipped copy."""

    def encode(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([super().encode(name, x), 2 * super().encode(name, -x)], 1)


class Bypass(Concat):
    """A parameter of the image modality (a position table) is added outside of its encoder module, as in ViLT."""

    def build(self) -> None:
        super().build()
        self.image_position = nn.Parameter(torch.randn(1, 1, self.width))

    def features(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        features = super().features(batch)
        return {**features, "image": features["image"] + self.image_position}

    def forward(self, labels: torch.Tensor | None = None, only: str | None = None, **batch: torch.Tensor) -> dict:
        # Absent means: the encoder's output is zero. The position stays, as in the model that hf_dgl sees.
        features = {n: self.encode(n, batch[n]) for n in self.modalities}
        if only is not None:
            features = {n: f if n == only else torch.zeros_like(f) for n, f in features.items()}
        features["image"] = features["image"] + self.image_position
        logits = self.fuse(features)
        return {"logits": logits, "loss": nn.functional.cross_entropy(logits, labels)}

    def declared(self) -> dict:
        declared = super().declared()
        declared["image"]["parameters"] = ["image_position"]
        return declared


class Interleaved(Toy):
    """Towers whose every layer feeds the next one and a bridge (as BridgeTower): the towers themselves are never
    called."""

    def build(self) -> None:
        self.bridges = nn.ModuleList(nn.Linear(2 * self.width, self.width) for _ in range(2))
        self.head = nn.Linear(self.width, 3)

    def forward(self, labels: torch.Tensor | None = None, only: str | None = None, **batch: torch.Tensor) -> dict:
        state, fused = dict(batch), put(torch.zeros(()))
        for layer, bridge in zip((0, 2), self.bridges, strict=True):
            for name in self.modalities:
                state[name] = getattr(self, f"enc_{name}")[layer](state[name])
                if only not in (None, name):
                    state[name] = torch.zeros_like(state[name])
            fused = torch.tanh(bridge(torch.cat([state[n].mean(1) for n in self.modalities], -1)) + fused)
        logits = self.head(fused)
        return {"logits": logits, "loss": nn.functional.cross_entropy(logits, labels)}

    def declared(self) -> dict:
        return {n: {"inputs": [n], "encoder": [f"enc_{n}.0", f"enc_{n}.2"]} for n in self.modalities}


class SharedStem(Concat):
    """A fusion parameter in front of the encoders: it must get the multimodal gradient through them."""

    def build(self) -> None:
        super().build()
        self.stem = nn.Linear(5, 5)

    def encode(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return super().encode(name, self.stem(x))


class InPlace(Concat):
    """Writes into the features in place, as BLIP-2 does."""

    def fuse(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        for feature in features.values():
            feature += 1.0
        return super().fuse(features)


class WritesBetween(Concat):
    """An encoder of two modules; what the first gives is written into on its way to the second (as Gemma 3n does)."""

    def encode(self, name: str, x: torch.Tensor) -> torch.Tensor:
        first, _, last = getattr(self, f"enc_{name}")
        hidden = first(x)
        hidden *= 2.0
        return last(hidden.square())  # whose gradient reads what was written

    def declared(self) -> dict:
        return {n: {"inputs": [n], "encoder": [f"enc_{n}.0", f"enc_{n}.2"]} for n in self.modalities}


class WritesIntoTheContainer(Concat):
    """Puts what it makes of a tower's output into the tower's container, in place of it (as Kimi's projector)."""

    class Tower(nn.Linear):
        def forward(self, x: torch.Tensor) -> dict:
            return {"state": super().forward(x)}

    def build(self) -> None:
        super().build()
        for name in self.modalities:
            setattr(self, f"tower_{name}", self.Tower(5, 5))

    def encode(self, name: str, x: torch.Tensor) -> torch.Tensor:
        output = getattr(self, f"tower_{name}")(x)
        output["state"] = super().encode(name, output["state"]).split(2, 1)
        return torch.cat(output["state"], 1)

    def declared(self) -> dict:
        return {n: {"inputs": [n], "encoder": [f"tower_{n}", f"enc_{n}"]} for n in self.modalities}


class BatchNormFusion(Concat):
    def build(self) -> None:
        super().build()
        self.norm = nn.BatchNorm1d(self.width * len(self.modalities))

    def fuse(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.head(self.norm(torch.cat([features[n].mean(1) for n in self.modalities], -1)))


class Streams(Toy):
    """Each modality keeps its stream in the fusion and reads the other's; both are read out (as BridgeTower). The
    stream of an absent modality is silent."""

    def build(self) -> None:
        self.cross = nn.ModuleDict({n: nn.Linear(self.width, self.width) for n in self.modalities})
        self.read_out = nn.ModuleDict({n: nn.Linear(self.width, self.width) for n in self.modalities})
        self.head = nn.Linear(self.width * len(self.modalities), 3)

    def forward(self, labels: torch.Tensor | None = None, only: str | None = None, **batch: torch.Tensor) -> dict:
        features = self.features(batch)
        if only is not None:
            features = {n: f if n == only else torch.zeros_like(f) for n, f in features.items()}
        read = []
        for name in self.modalities:
            others = [self.cross[n](features[n].mean(1)) for n in self.others(name)]
            if only is not None:
                others = [
                    f if n == only else torch.zeros_like(f) for n, f in zip(self.others(name), others, strict=True)
                ]
            out = self.read_out[name](torch.tanh(features[name].mean(1) + sum(others)))
            read.append(out if only in (None, name) else torch.zeros_like(out))
        logits = self.head(torch.cat(read, -1))
        return {"logits": logits, "loss": nn.functional.cross_entropy(logits, labels)}

    def others(self, name: str) -> list[str]:
        return [n for n in self.modalities if n != name]

    def declared(self) -> dict:
        return {
            n: {"inputs": [n], "encoder": [f"enc_{n}"], "silent": [f"cross.{n}", f"read_out.{n}"]}
            for n in self.modalities
        }


class SharedSequence(Attention):
    """Tokens of both modalities in one sequence with one mask; those of an absent modality are closed in it."""

    def forward(
        self,
        labels: torch.Tensor | None = None,
        only: str | None = None,
        mask: torch.Tensor | None = None,
        **batch: torch.Tensor,
    ) -> dict:
        features = self.features(batch)
        tokens = torch.cat([features[n] for n in self.modalities], 1)
        if only is not None:
            mask = self.mask_of(batch, *(n for n in self.modalities if n != only))
        closed = None if mask is None else ~mask
        mixed = tokens + self.attention(tokens, tokens, tokens, key_padding_mask=closed, need_weights=False)[0]
        weights = torch.ones_like(mixed[..., :1]) if mask is None else mask.unsqueeze(-1).to(mixed)
        logits = self.head(self.norm((mixed * weights).sum(1) / weights.sum(1)))
        return {"logits": logits, "loss": nn.functional.cross_entropy(logits, labels)}

    def mask_of(self, batch: dict, *absent: str) -> torch.Tensor:
        """Which tokens are open: bool `[rows, all tokens]`."""
        return put(torch.cat([torch.full(batch[n].shape[:2], n not in absent) for n in self.modalities], 1))

    def declared(self) -> dict:
        def without(name: str) -> Callable[[dict], dict]:
            return lambda call: {**call, "mask": self.mask_of(call, name)}

        return {
            n: {"inputs": [n], "encoder": [f"enc_{n}"], "absent": "omit", "hide": without(n)} for n in self.modalities
        }


class CallsOnceMore(Attention):
    """With the image there, the text's encoder runs once more before, for nothing (Granite Speech's embeddings)."""

    def features(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if None not in (batch.get("image"), batch.get("text")):
            self.encode("text", batch["text"])
        return {name: self.encode(name, batch[name]) for name in self.modalities if batch.get(name) is not None}

    def forward(self, labels: torch.Tensor | None = None, only: str | None = None, **batch: torch.Tensor) -> dict:
        features = self.features({only: batch[only]} if only else batch)
        logits = self.fuse(features)
        return {"logits": logits, "loss": nn.functional.cross_entropy(logits, labels)}

    def fuse(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        tokens = torch.cat(list(features.values()), 1)
        mixed = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return self.head(self.norm(mixed.mean(1)))

    def declared(self) -> dict:
        return {n: {"inputs": [n], "encoder": [f"enc_{n}"], "absent": "omit"} for n in self.modalities}


class CallsOnceLess(CallsOnceMore):
    """Without the image, the text's encoder runs once more."""

    def features(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if batch.get("image") is None:
            self.encode("text", -batch["text"])
        return {name: self.encode(name, batch[name]) for name in self.modalities if batch.get(name) is not None}


class ShorterAlone(CallsOnceMore):
    """Without the image, there is room for all of the text; beside it, only for its beginning."""

    def features(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        room = 3 if batch.get("image") is not None else 4
        given = {**batch, "text": batch["text"][:, :room]} if batch.get("text") is not None else batch
        return {name: self.encode(name, given[name]) for name in self.modalities if given.get(name) is not None}


TOYS = [
    Concat,
    ThreeConcat,
    Attention,
    ThreeAttention,
    TiedToHead,
    TiedEncoders,
    CalledTwice,
    Bypass,
    Interleaved,
    SharedStem,
    InPlace,
    WritesBetween,
    WritesIntoTheContainer,
    BatchNormFusion,
    Streams,
    SharedSequence,
    CallsOnceMore,
    CallsOnceLess,
    ShorterAlone,
]


def toy_batch(model: Toy, rows: int = 8, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    batch = {n: torch.randn(rows, 4, 5, generator=generator, dtype=torch.float64) for n in model.modalities}
    return put({**batch, "labels": torch.randint(3, (rows,), generator=generator)})


def make_toy(toy: type[Toy], seed: int = 0) -> Toy:
    torch.manual_seed(seed)
    return put(toy().double().train())


def toy_losses(model: Toy, batch: dict[str, torch.Tensor]) -> dict[str, Callable[[], torch.Tensor]]:
    """The multimodal and unimodal losses of a toy, each computed by the toy itself."""
    losses = {"multimodal": lambda: model(**batch)["loss"]}
    return losses | {name: (lambda name=name: model(**batch, only=name)["loss"]) for name in model.modalities}
