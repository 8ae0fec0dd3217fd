"""Stands in for a processor that computes in bfloat16, which is then the precision "auto": ``-p native_bfloat16``."""

import torch

torch.cpu._is_avx512_bf16_supported = lambda: True
