"""A model folder as text-to-video-ms-1.7b is one, reduced and with random weights; and U-Nets as LVDM and VideoCrafter
name their tensors, written down from what they published."""

import json

import torch

WIDTH = 24  # of a token
LENGTH = 20
UNET = {
    "block_out_channels": (16, 32, 32),
    "down_block_types": ("CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D"),
    "layers_per_block": 1,
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 8,
    "norm_num_groups": 8,
}
VAE = {
    "block_out_channels": (8, 16, 16, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "scaling_factor": 0.5,
}
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def byte_letters():
    """CLIP's printable stand-ins for the 256 bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) for byte in plain] + [chr(256 + i) for i in range(len(rest))]


def write_tokenizer(folder, length=LENGTH):
    """Byte pairs, as CLIP's: any text can be written with them."""
    merges = [("r", "e"), ("re", "d</w>"), ("o", "k</w>")]
    words = [*byte_letters(), *(letter + "</w>" for letter in byte_letters()), *("".join(pair) for pair in merges)]
    vocabulary = {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, merges)) + "\n")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return vocabulary


def randomise(module, seed=0, scale=0.1):
    """Zero-initialised layers would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(
                torch.randn(parameter.shape, generator=generator) * (scale if parameter.ndim > 1 else 3 * scale)
            )
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)
    return module


def write_text_to_video(folder, **unet):
    """unet, vae, text_encoder, tokenizer, scheduler and model_index.json. Returns the pipeline of diffusers."""
    import diffusers
    import transformers

    vocabulary = write_tokenizer(folder / "tokenizer")
    size = len(vocabulary)
    clip = transformers.CLIPTextConfig(
        hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=size,
        max_position_embeddings=LENGTH, bos_token_id=size - 2, eos_token_id=size - 1, pad_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    pipeline = diffusers.TextToVideoSDPipeline(
        vae=randomise(diffusers.AutoencoderKL(**VAE), 1),
        text_encoder=randomise(transformers.CLIPTextModel(clip), 2),
        tokenizer=transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        unet=randomise(diffusers.UNet3DConditionModel(**(UNET | unet)), 3),
        scheduler=diffusers.DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
    )
    for network in (pipeline.vae, pipeline.text_encoder, pipeline.unet):
        network.eval()
    pipeline.save_pretrained(folder)
    return pipeline


# ---- the numbered blocks of LVDM and VideoCrafter -------------------------------------------------------------------------


class Layout:
    """Names and shapes of one U-Net, as their code registers them. `kind` is `lvdm` or `videocrafter`."""

    def __init__(
        self, kind, *, channels=32, multipliers=(1, 2), blocks=1, text=12, head_width=16, heads=2, relative=0, **parts
    ):
        self.kind, self.text, self.relative = kind, text, relative
        self.head_width, self.heads = head_width, heads
        self.parts = {"temporal_conv": True, "init_attn": True, "fps": False} | parts
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.time = 4 * channels
        widths, last = [channels * m for m in multipliers], len(multipliers) - 1
        for first in ("time_embed", *(("fps_embedding",) if self.parts["fps"] else ())):
            self.linear(f"{first}.0", channels, self.time)
            self.linear(f"{first}.2", self.time, self.time)
        self.conv("input_blocks.0.0", 4, channels)
        if kind == "videocrafter" and self.parts["init_attn"]:
            self.transformer("init_attn.0", channels, temporal=True, inner=8 * head_width, linear=False)
        width, skips, number = channels, [channels], 1
        for level, out in enumerate(widths):
            for _ in range(blocks):
                self.cell(f"input_blocks.{number}", width, out)
                width, number = out, number + 1
                skips.append(out)
            if level < last:
                self.conv(f"input_blocks.{number}.0.op", out, out)
                skips.append(out)
                number += 1
        after = self.cell("middle_block", width, width)
        self.residual(f"middle_block.{after}", width, width)
        number = 0
        for level, out in reversed(list(enumerate(widths))):
            for i in range(blocks + 1):
                after = self.cell(f"output_blocks.{number}", width + skips.pop(), out)
                width = out
                if level and i == blocks:
                    self.conv(f"output_blocks.{number}.{after}.conv", out, out)
                number += 1
        self.norm("out.0", channels)
        self.conv("out.2", channels, 4)

    def norm(self, name, width):
        self.shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}

    def linear(self, name, width_in, width_out, bias=True):
        self.shapes |= {f"{name}.weight": (width_out, width_in)} | ({f"{name}.bias": (width_out,)} if bias else {})

    def conv(self, name, width_in, width_out, size=3):
        kernel = (1, size, size) if self.kind == "lvdm" else (size, size)
        self.shapes |= {f"{name}.weight": (width_out, width_in, *kernel), f"{name}.bias": (width_out,)}

    def residual(self, name, width_in, width_out):
        self.norm(f"{name}.in_layers.0", width_in)
        self.conv(f"{name}.in_layers.2", width_in, width_out)
        self.linear(f"{name}.emb_layers.1", self.time, width_out)
        self.norm(f"{name}.out_layers.0", width_out)
        self.conv(f"{name}.out_layers.3", width_out, width_out)
        if width_in != width_out:
            self.conv(f"{name}.skip_connection", width_in, width_out, 1)
        if self.kind == "videocrafter" and self.parts["temporal_conv"]:
            for i in range(1, 5):
                self.norm(f"{name}.temopral_conv.conv{i}.0", width_out)
                place = f"{name}.temopral_conv.conv{i}.{2 if i == 1 else 3}"
                self.shapes |= {f"{place}.weight": (width_out, width_out, 3, 1, 1), f"{place}.bias": (width_out,)}

    def cell(self, name, width_in, width_out):
        self.residual(f"{name}.0", width_in, width_out)
        self.transformer(f"{name}.1", width_out, temporal=False)
        if self.kind == "lvdm":
            return 2
        self.transformer(f"{name}.2", width_out, temporal=True)
        return 3

    def transformer(self, name, width, *, temporal, inner=None, linear=True):
        inner = inner or width
        self.norm(f"{name}.norm", width)
        ones = (1, 1, 1) if self.kind == "lvdm" else () if linear else (1,)
        for projection, shape in (("proj_in", (inner, width)), ("proj_out", (width, inner))):
            self.shapes |= {f"{name}.{projection}.weight": (*shape, *ones), f"{name}.{projection}.bias": shape[:1]}
        block = f"{name}.transformer_blocks.0"
        self.attention(f"{block}.attn1", inner, inner, temporal)
        self.attention(f"{block}.attn2", inner, inner if temporal else self.text, temporal)
        numbers = 3
        if self.kind == "lvdm":
            numbers = 5
            for i in (1, 2):
                self.attention(f"{block}.attn{i}_tmp", inner, inner, True)
        for i in range(1, numbers + 1):
            self.norm(f"{block}.norm{i}", inner)
        self.linear(f"{block}.ff.net.0.proj", inner, 8 * inner)
        self.linear(f"{block}.ff.net.2", 4 * inner, inner)

    def attention(self, name, width, tokens, temporal):
        for letter, size in (("q", width), ("k", tokens), ("v", tokens)):
            self.linear(f"{name}.to_{letter}", size, width, bias=False)
        self.linear(f"{name}.to_out.0", width, width)
        for letter in "kv" if temporal and self.relative else "":
            rows = 2 * self.relative + 1
            size = width // self.heads if self.kind == "lvdm" else self.head_width
            self.shapes[f"{name}.relative_position_{letter}.embeddings_table"] = (rows, size)

    def state(self, prefix="model.diffusion_model."):
        generator = torch.Generator().manual_seed(0)
        return {f"{prefix}{name}": torch.randn(shape, generator=generator) * 0.1 for name, shape in self.shapes.items()}
