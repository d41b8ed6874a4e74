"""Pictures and pages of a training run and of a model: curves, tables of scores, `report.html`, the model as a tree.

They read logs and modules and know no trainer. Pictures of an analysis lie beside it, in `hf_dgl.analysis`.
"""
