"""V-JEPA 2 in JAX and Flax: pretraining on video, for TPU and GPU pods and for laptops.

Shapes in docstrings use one alphabet: `B` batch, `T` or `F` frames, `H W` pixels,
`t h w` token grid, `N` tokens, `Kc Kt` context and target tokens, `D` width,
`K` heads, `d` channels per head. Video is channels-last, tokens are row-major
over (time, row, column). Units: pixels, seconds, frames per second.
"""
