"""What a training step costs: FLOPs, seconds, memory; DGL against joint training and the paper's procedure.

What a step teaches is asked in `hf_dgl.analysis.comparison`.
"""

from .benchmark import benchmark_recipe, benchmark_shape

__all__ = ["benchmark_recipe", "benchmark_shape"]
