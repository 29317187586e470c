"""Packed weights in the format of the `compressed-tensors` library, which vLLM and transformers read."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
from compressed_tensors import __version__ as VERSION
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainlore.errors import Bad
from trainlore.exports import fresh, on_grids, read_into, timed
from trainlore.nouns import Model
from trainlore.primitives.grids import Codebook, Grid
from trainlore.primitives.reparam import turned
from trainlore.primitives.shrinking import KEPT
from trainlore.steps import SAME


def RUNTIME(model: Model) -> str:
    """What reads it: for grids with zero points transformers makes room in another shape than the library packs them in."""
    import transformers

    library = f"compressed-tensors {VERSION}"
    return library if _zeros(on_grids(model)) else f"transformers {transformers.__version__} with {library}"


def tolerance(model: Model, batch: dict[str, Any]) -> float:
    """The same values, in the same type: nothing may change but the order of sums."""
    return SAME


def write(model: Model, folder: Path) -> None:
    """Pack every weight that lies on its grid; the others stay as they are. Raises Bad where the format cannot hold one."""
    grids = on_grids(model)
    if not grids:
        raise Bad("no weight of this model lies on a grid of few bits: quantize it first (`gptq`, `awq`, `nearest`)")
    net: Any = model.net
    if getattr(net.config, KEPT, None):
        raise Bad("its blocks are of different sizes, which no reader of compressed-tensors expects: use hf or onnx")
    for path, grid in grids.items():
        _fits(model, path, grid)
    state = {k: v.detach().cpu().contiguous() for k, v in net.state_dict().items()}
    seen: dict[int, str] = {}
    for name in list(state):  # shared weights are stored once
        if seen.setdefault(state[name].data_ptr(), name) != name and state[name].numel():
            del state[name]
    for path, grid in grids.items():
        weight = state.pop(f"{path}.weight")
        state |= {f"{path}.{name}": value for name, value in _packed(weight, grid).items()}
    net.config.save_pretrained(folder)
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = _config(model, grids)
    config["architectures"] = [type(model.net).__name__]
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    (folder / "trainlore.json").write_text(
        json.dumps({"kind": model.kind, "about": model.about, "trail": list(model.trail)}, indent=1)
    )
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def logits(folder: Path, batch: dict[str, Any], model: Model) -> tuple[Tensor, float]:
    """The logits of the model that transformers loads, or of the weights that the library unpacks, and the seconds of a pass."""
    with torch.no_grad(), redirect_stderr(io.StringIO()):  # weights are unpacked, with a bar, in the first pass
        try:
            back = _unpacked(folder, model) if _zeros(on_grids(model)) else _loaded(folder, model)
            out, seconds = timed(lambda: back(batch))
        except AttributeError as error:  # the net's own code looks for a layer's weight, as that of T5 does
            raise Bad(f"{type(model.net).__name__} does not run with packed layers ({error}): use hf") from error
    return out.float(), seconds


def _zeros(grids: dict[str, Any]) -> bool:
    return any(isinstance(g, Grid) and g.form.startswith("u") for g in grids.values())


def _loaded(folder: Path, model: Model) -> Model:
    net: Any = model.net
    made = type(net).from_pretrained(folder, dtype=next(net.parameters()).dtype, local_files_only=True)
    return Model(made.eval(), model.kind)


def _unpacked(folder: Path, model: Model) -> Model:
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    state = load_file(folder / "model.safetensors")
    for group in config["config_groups"].values():
        scheme = QuantizationScheme(targets=group["targets"], weights=QuantizationArgs(**group["weights"]))
        unpack = BaseCompressor.get_value_from_registry(group["format"]).decompress
        for path in group["targets"]:
            mine = {
                k.rpartition(".")[2]: state.pop(k) for k in list(state) if k.startswith(f"{path}.") and ".weight" in k
            }
            state[f"{path}.weight"] = unpack(mine, scheme)["weight"]
    back = fresh(model)
    read_into(back, state)
    return back


def _fits(model: Model, path: str, grid: Any) -> None:
    layer = model.net.get_submodule(path)
    if isinstance(grid, Codebook):
        raise Bad(
            f"{path} is a codebook's, which compressed-tensors cannot hold; it holds whole numbers and e4m3: use hf"
        )
    if not isinstance(layer, torch.nn.Linear) or turned(layer):
        other = "gguf and hf can hold it" if turned(layer) else "hf can hold it, or name the linear ones in `targets`"
        raise Bad(f"{path} is a {type(layer).__name__}, and compressed-tensors packs linear layers: {other}")
    if grid.form not in ("e4m3", *(f"{s}int{b}" for s in ("", "u") for b in range(2, 9))):
        raise Bad(f"{path} is in {grid.form}, which compressed-tensors packs in no way that can be read here: use hf")
    if isinstance(grid.per, int) and layer.in_features % grid.per:
        raise Bad(
            f"{path} has {layer.in_features} inputs, which groups of {grid.per} do not divide: use a group that does"
        )


def _packed(weight: Tensor, grid: Grid) -> dict[str, Tensor]:
    rows = len(weight)
    per_row = grid.scale.expand(rows, 1) if grid.per == "tensor" else grid.scale.view(rows, -1)
    scale = per_row.to(torch.float32).contiguous()
    if grid.form == "e4m3":
        values = grid.back(grid.codes(weight)) / grid.columns(weight.shape[1])[0]
        return {"weight": values.to(torch.float8_e4m3fn), "weight_scale": scale}
    codes, half = grid.codes(weight).to(torch.int16), 1 << (grid.bits - 1)
    signed = (codes - half if grid.form.startswith("u") else codes).to(torch.int8)
    found = {
        "weight_packed": pack_to_int32(signed, grid.bits).contiguous(),
        "weight_scale": scale,
        "weight_shape": torch.tensor(weight.shape),
    }
    if grid.form.startswith("u"):
        zero = grid.zero.expand(rows, 1) if grid.per == "tensor" else grid.zero.view(rows, -1)
        found["weight_zero_point"] = pack_to_int32((zero - half).to(torch.int8), grid.bits, packed_dim=0).contiguous()
    return found


def _config(model: Model, grids: dict[str, Grid]) -> dict[str, Any]:
    groups: dict[tuple[str, Any], list[str]] = {}
    for path, grid in grids.items():
        groups.setdefault((grid.form, grid.per if isinstance(grid.per, int) else "channel"), []).append(path)
    packed = {}
    for number, ((form, per), paths) in enumerate(groups.items()):
        weights = {
            "num_bits": 8 if form == "e4m3" else int(form.lstrip("uint")),
            "type": "float" if form == "e4m3" else "int",
            "symmetric": not form.startswith("u"),
            "strategy": "group" if isinstance(per, int) else "channel",
            "group_size": per if isinstance(per, int) else None,
            "dynamic": False,
        }
        how = "float-quantized" if form == "e4m3" else "pack-quantized"
        packed[f"group_{number}"] = {"targets": paths, "weights": weights, "format": how}
    left = [n for n, m in model.net.named_modules() if isinstance(m, torch.nn.Linear) and n not in grids]
    formats = {g["format"] for g in packed.values()}
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "config_groups": packed,
        "ignore": left,
    }
