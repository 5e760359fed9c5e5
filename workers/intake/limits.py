"""Bounds of the model reader. Torch-free."""

from dataclasses import dataclass

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a model file may ask for at most. The defaults fit models of several billion weights.

    Args:
        max_file_bytes: Size of the file; tensors are mapped, not copied, so this bounds no memory.
        max_entries: Entries of the archive (one per stored tensor, and a dozen more).
        max_name_length: Characters of an entry's name, a value's name or a parameter's qualified name.
        max_json_bytes: Size of one JSON entry. Parsed JSON takes up to some 25 times its size in memory.
        max_json_depth: Nesting of JSON; what torch writes is about 15 deep.
        max_example_bytes: Size of the example inputs, whose pickle is scanned and never loaded.
        max_pickle_bytes: Size of the pickle inside the example inputs (the tensors lie outside it).
        max_nodes: Nodes of the graph, those that pick one of several results included.
        max_list_length: Elements of a list argument, and results of one operator.
        max_string_length: Characters of a string argument (an einsum equation, a padding mode).
        max_expression_length: Characters of a symbolic size.
        max_expression_depth: Nesting of a symbolic size.
        max_symbols: Distinct symbolic sizes of a model.
        max_rank: Axes of a tensor.
        max_value_bytes: Size of one computed value when one sample is fed (or the exported batch).
        max_live_bytes: Size of all values that are needed at one time, likewise.
        max_recurrent_steps: Time steps times layers times directions of one LSTM, GRU or RNN.
    """

    max_file_bytes: int = 64 * GIB
    max_entries: int = 100_000
    max_name_length: int = 512
    max_json_bytes: int = 64 * MIB
    max_json_depth: int = 64
    max_example_bytes: int = 4 * GIB
    max_pickle_bytes: int = MIB
    max_nodes: int = 100_000
    max_list_length: int = 4096
    max_string_length: int = 1024
    max_expression_length: int = 2000
    max_expression_depth: int = 32
    max_symbols: int = 32
    max_rank: int = 12
    max_value_bytes: int = 4 * GIB
    max_live_bytes: int = 12 * GIB
    max_recurrent_steps: int = 100_000
