"""Rotary positions: another base, and room for more of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainlore.errors import Bad

if TYPE_CHECKING:
    from trainlore.nouns import Model

__all__ = ["raise_base"]


def raise_base(model: Model, base: float, window: int) -> Model:
    """Give the model's rotary positions another base and room for `window` positions: frequency i is base^(-2i / dim)."""
    config = getattr(model.net, "config", None)
    rope = getattr(config, "rope_parameters", None)
    if not rope or rope.get("rope_type", "default") != "default":
        raise Bad(f"{type(model.net).__name__} has no plain rotary positions whose base could be raised")
    rope["rope_theta"] = float(base)
    for module in model.net.modules():
        if hasattr(module, "inv_freq"):
            made, module.attention_scaling = module.compute_default_rope_parameters(config)
            module.inv_freq = made.to(module.inv_freq)
            module.original_inv_freq = module.inv_freq.clone()
    config.max_position_embeddings = max(int(config.max_position_embeddings), window)  # type: ignore[union-attr]
    if model.window is not None and model.window < window:
        model.about["window"] = window
    return model
