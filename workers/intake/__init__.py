"""Reading untrusted files as data, never as code. Torch-free by itself: import the module you need.

A model (`pt2.read_model`) goes through, in order:

- `contents`, `archive`, `example_inputs`: is it a ``.pt2`` file, with nothing in it that could run?
- `jsontext`, `signature`, `graph_reader` (with `arguments`, `operators`, `tensor_meta`, `expression`): the graph;
- `payload`: the tensors, mapped from the file;
- `functional`: writes become new values; `batch`: where the samples are;
- `shape_check`, `costs`: a dry run without memory, against what the file declares and the bounds of `limits`.

A data file goes through `dataset_header`, which needs no torch, and `dataset`.
"""
