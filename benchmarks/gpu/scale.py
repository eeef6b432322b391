"""The sizes at which the parts measure."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Scale:
    """`sizes` are images of a training step by side; a pass is of `pass_px`, alone and in batches of `pass_batch`."""

    device: torch.device
    widths: tuple[int, ...]
    sizes: dict[int, int]
    pass_px: int
    pass_batch: int
    rounds: int
    compiles: bool

    @property
    def half_types(self) -> list[torch.dtype]:
        """In which convolutions may run beside fp32."""
        if self.device.type != "cuda":
            return [torch.bfloat16]
        return [torch.bfloat16, torch.float16] if torch.cuda.is_bf16_supported(False) else [torch.float16]


# The paper's widths; as many images as one GPU of 24 GiB holds in fp32.
REAL = Scale(torch.device("cuda", 0), (32, 64, 128, 256, 512), {96: 64, 256: 16, 512: 4}, 256, 32, 10, True)
TOY = Scale(torch.device("cpu"), (4, 8, 8, 16, 16), {32: 2}, 32, 2, 1, False)
