"""LoRA on experts held as 3-D tensors, computed on the tokens that visit them and never as a matrix an expert.

`moeba.training` has its names; `grouping` needs `peft`.
"""
