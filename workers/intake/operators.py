"""The operators a model may use: everything else is refused by name.

The list holds what inference graphs need and nothing that reads files, draws random numbers, has results
whose sizes depend on values, reinterprets memory, or calls other code. Names come from this list alone, never from
a file: a file's text is looked up, not resolved.
"""

import math
import operator
from collections.abc import Callable
from typing import Any, Final

import torch
from torch._ops import OpOverload

Target = Callable[..., Any]


def _words(text: str) -> list[str]:
    return text.split()


_FAMILIES: Final[dict[str, str]] = {
    "activations": """
        celu elu gelu glu hardshrink hardsigmoid hardswish hardtanh leaky_relu log_sigmoid logit mish prelu relu
        relu6 rrelu selu sigmoid silu softplus softshrink tanh threshold
        softmax.int _softmax log_softmax.int _log_softmax""",
    "arithmetic": """
        abs absolute acos acosh add.Tensor add.Scalar addcdiv addcmul asin asinh atan atan2 atanh ceil
        clamp clamp.Tensor clamp_max clamp_max.Tensor clamp_min clamp_min.Tensor clip clip.Tensor copysign.Tensor copysign.Scalar
        cos cosh deg2rad div.Tensor div.Scalar div.Tensor_mode div.Scalar_mode divide.Tensor divide.Scalar
        erf erfc exp exp2 expm1 float_power.Tensor_Scalar floor floor_divide floor_divide.Scalar fmax fmin
        fmod.Scalar fmod.Tensor frac heaviside hypot lerp.Scalar lerp.Tensor log log10 log1p log2 logaddexp logaddexp2
        maximum minimum mul.Tensor mul.Scalar multiply.Tensor multiply.Scalar nan_to_num neg negative positive
        pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar rad2deg reciprocal remainder.Scalar remainder.Tensor
        round round.decimals rsqrt rsub.Scalar rsub.Tensor sgn sign sin sinc sinh sqrt square
        sub.Tensor sub.Scalar subtract.Tensor subtract.Scalar tan true_divide.Tensor true_divide.Scalar trunc
        xlogy.Tensor""",
    "comparison and logic": """
        all all.dim any any.dim bitwise_and.Scalar bitwise_and.Tensor bitwise_left_shift.Tensor_Scalar bitwise_not
        bitwise_or.Scalar bitwise_or.Tensor bitwise_right_shift.Tensor_Scalar bitwise_xor.Scalar bitwise_xor.Tensor
        __and__.Scalar __and__.Tensor __or__.Scalar __or__.Tensor __xor__.Scalar __xor__.Tensor
        __lshift__.Scalar __rshift__.Scalar
        eq.Scalar eq.Tensor ge.Scalar ge.Tensor greater.Tensor greater.Scalar greater_equal.Tensor greater_equal.Scalar
        gt.Scalar gt.Tensor isfinite isin.Tensor_Tensor isinf isnan isneginf isposinf le.Scalar le.Tensor
        less.Tensor less.Scalar less_equal.Tensor less_equal.Scalar
        logical_and logical_not logical_or logical_xor lt.Scalar lt.Tensor masked_fill.Scalar masked_fill.Tensor
        ne.Scalar ne.Tensor not_equal.Tensor not_equal.Scalar
        where.self where.Scalar where.ScalarOther where.ScalarSelf""",
    "reductions and order": """
        amax amin aminmax argmax argmin argsort argsort.stable cummax cummin cumprod cumsum count_nonzero
        count_nonzero.dim_IntList frobenius_norm.dim kthvalue linalg_norm linalg_vector_norm logcumsumexp logsumexp
        max max.dim max.other mean mean.dim median median.dim min min.dim min.other nanmean nansum
        norm.Scalar norm.ScalarOpt_dim norm.ScalarOpt_dim_dtype prod prod.dim_int sort sort.stable
        std std.correction std.dim std_mean.correction std_mean.dim sum sum.dim_IntList topk
        var var.correction var.dim var_mean.correction var_mean.dim""",
    "linear algebra": """
        addbmm addmm addmv addr baddbmm bilinear bmm cdist cosine_similarity cross dot einsum inner kron
        linalg_cross linear matmul mm mv outer pairwise_distance tensordot _weight_norm""",
    "convolutions": """
        conv1d conv1d.padding conv2d conv2d.padding conv3d conv3d.padding conv_transpose1d conv_transpose2d.input
        conv_transpose3d.input convolution""",
    "pooling and resampling": """
        adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d
        adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d affine_grid_generator avg_pool1d avg_pool2d avg_pool3d
        channel_shuffle col2im grid_sampler grid_sampler_2d grid_sampler_3d im2col
        max_pool1d max_pool1d_with_indices max_pool2d max_pool2d_with_indices max_pool3d max_pool3d_with_indices
        pixel_shuffle pixel_unshuffle
        upsample_bicubic2d.vec _upsample_bicubic2d_aa.vec upsample_bilinear2d.vec _upsample_bilinear2d_aa.vec
        upsample_linear1d.vec upsample_nearest1d.vec upsample_nearest2d.vec upsample_nearest3d.vec
        upsample_trilinear3d.vec _upsample_nearest_exact1d.vec _upsample_nearest_exact2d.vec
        _upsample_nearest_exact3d.vec""",
    "normalization": """
        batch_norm _fused_rms_norm group_norm instance_norm layer_norm
        _native_batch_norm_legit_no_training native_group_norm native_layer_norm rms_norm""",
    "attention, embedding, recurrence": """
        scaled_dot_product_attention
        embedding one_hot
        gru.input gru_cell lstm.input lstm_cell rnn_relu.input rnn_relu_cell rnn_tanh.input rnn_tanh_cell""",
    "views and shapes": """
        alias broadcast_tensors broadcast_to chunk diag_embed diagonal expand expand_as flatten.using_ints
        mH mT matrix_H meshgrid.indexing meshgrid movedim.int movedim.intlist moveaxis.int moveaxis.intlist narrow
        numpy_T permute ravel reshape reshape_as select.int slice.Tensor split.Tensor split.sizes split_with_sizes squeeze squeeze.dim
        squeeze.dims swapaxes swapdims t tensor_split.sections tensor_split.indices transpose.int
        unbind.int unflatten.int unfold _unsafe_view unsqueeze unsafe_chunk unsafe_split.Tensor unsafe_split_with_sizes
        view view_as""",
    "joining, indexing, filling": """
        bucketize.Tensor cat column_stack concat concatenate constant_pad_nd copy diag diagonal_scatter diff dstack
        fill.Scalar fill.Tensor flip
        fliplr flipud gather histc hstack index.Tensor index_add index_copy index_fill.int_Scalar index_put index_select
        masked_scatter pad reflection_pad1d reflection_pad2d reflection_pad3d repeat repeat_interleave.self_int
        replication_pad1d replication_pad2d replication_pad3d roll rot90 scatter.reduce scatter.src scatter.value
        scatter_add scatter_reduce.two searchsorted.Tensor select_scatter slice_scatter stack take take_along_dim tile
        tril triu vstack zero""",
    "creation": """
        arange arange.start arange.start_step eye eye.m full full_like linspace new_full new_ones new_zeros
        ones ones_like scalar_tensor tril_indices triu_indices zeros zeros_like""",
    "conversion": """
        clone contiguous detach lift_fresh lift_fresh_copy _to_copy to.dtype to.dtype_layout to.other type_as""",
    "complex numbers and Fourier transforms": """
        angle complex conj _conj conj_physical fft_fft fft_fft2 fft_fftn fft_ifft fft_ifft2 fft_ifftn fft_irfft fft_irfft2
        fft_irfftn fft_rfft fft_rfft2 fft_rfftn imag polar real resolve_conj resolve_neg view_as_complex view_as_real""",
    "dropout in evaluation mode": """
        alpha_dropout dropout feature_alpha_dropout feature_dropout native_dropout""",
    "sizes": """
        sym_numel sym_size.int""",
}

_PYTHON: Final[dict[str, Target]] = {
    **{
        f"_operator.{name}": getattr(operator, name)
        for name in _words("add sub mul floordiv truediv mod pow neg pos eq ne lt le gt ge and_ or_")
    },
    "math.trunc": math.trunc,
    **{
        f"torch.{name}": getattr(torch, name)
        for name in _words("sym_float sym_int sym_ite sym_max sym_min sym_not sym_sqrt")
    },
}

# Read as another operator. Uninitialised memory is neither reproducible nor ours to show, so it is zeros; and
# where a model runs is not the file's business, so a move to a device is only the cast that comes with it.
_READ_AS: Final = {
    "empty.memory_format": "zeros.default",
    "empty_like.default": "zeros_like.default",
    "new_empty.default": "new_zeros.default",
    "to.device": "to.dtype",
}

# Checks of the exporter; our own shape check stands in for them.
_ASSERTIONS: Final = frozenset(
    f"torch.ops.aten.{name}"
    for name in _words("""
        _assert_async.default _assert_async.msg _assert_scalar.default _assert_tensor_metadata.default
        sym_constrain_range.default sym_constrain_range_for_size.default""")
)

# Operators that behave differently in training: the argument that says so, and the only value accepted.
_EVALUATION: Final[dict[str, tuple[str, object]]] = {
    "alpha_dropout.default": ("train", False),
    "batch_norm.default": ("training", False),
    "dropout.default": ("train", False),
    "feature_alpha_dropout.default": ("train", False),
    "feature_dropout.default": ("train", False),
    "gru.input": ("train", False),
    "lstm.input": ("train", False),
    "native_dropout.default": ("train", False),
    "rnn_relu.input": ("train", False),
    "rnn_tanh.input": ("train", False),
    "rrelu.default": ("training", False),
    "scaled_dot_product_attention.default": ("dropout_p", 0.0),
}

# In-place operators whose functional twin has another name.
_OTHER_TWINS: Final = {
    "floor_divide_.Tensor": "floor_divide.default",
    "pow_.Scalar": "pow.Tensor_Scalar",
    "pow_.Tensor": "pow.Tensor_Tensor",
}

# Named only to tell the user why: none of these can ever be accepted.
_RANDOM: Final = _words("""
    bernoulli exponential geometric log_normal multinomial normal poisson rand rand_like randint
    randint_like randn randn_like random randperm uniform""")
_VALUE_DEPENDENT: Final = _words("""
    _local_scalar_dense item masked_select nonzero nonzero_numpy nonzero_static repeat_interleave
    unique_consecutive _unique2 unique_dim""")


def schema_of(overload: Any) -> torch.FunctionSchema:
    """Names, types and aliasing of an operator's arguments and results."""
    schema: torch.FunctionSchema = overload._schema  # noqa: SLF001 - torch offers no public way
    return schema


def _overload(name: str) -> OpOverload:
    packet, _, overload = name.partition(".")
    found = getattr(getattr(torch.ops.aten, packet), overload or "default")
    assert isinstance(found, OpOverload)
    return found


def _key(overload: OpOverload) -> str:
    return str(overload).removeprefix("aten.")


def _in_place_twins(
    functional: list[OpOverload],
) -> dict[OpOverload, OpOverload]:
    """In-place overload -> functional overload with the same arguments, for every allowed operator that has one.

    Operators that change a tensor's shape in place (``squeeze_``) are not among them.
    """
    twins = {}
    for overload in functional:
        packet, name = _key(overload).split(".")
        twin = getattr(getattr(torch.ops.aten, f"{packet}_", None), name, None)
        if twin is None or packet.startswith("__") or packet in _words(_FAMILIES["views and shapes"]):
            continue
        if _signature(twin) == _signature(overload):
            twins[twin] = overload
    twins.update({_overload(name): _overload(twin) for name, twin in _OTHER_TWINS.items()})
    return twins


def _signature(overload: OpOverload) -> list[tuple[str, str]]:
    """Names and types of the arguments; the first is called ``self`` by some and ``input`` by others."""
    first, *others = schema_of(overload).arguments
    return [("", str(first.type)), *((a.name, str(a.type)) for a in others)]


_FUNCTIONAL: Final = [_overload(name) for family in _FAMILIES.values() for name in _words(family)]

IN_PLACE: Final[dict[Any, OpOverload]] = _in_place_twins(_FUNCTIONAL)
"""In-place overload -> its functional twin."""

TARGETS: Final[dict[str, Target]] = {
    **{f"torch.ops.aten.{_key(overload)}": overload for overload in (*_FUNCTIONAL, *IN_PLACE)},
    **{f"torch.ops.aten.{name}": _overload(other) for name, other in _READ_AS.items()},
    **_PYTHON,
}
"""The text of a target in a file -> what it means; in-place overloads included."""

EVALUATION: Final[dict[Any, tuple[str, object]]] = {
    overload: _EVALUATION[_key(twin)]
    for overload, twin in (*((f, f) for f in _FUNCTIONAL), *IN_PLACE.items())
    if _key(twin) in _EVALUATION
}
"""Operator -> (argument, value it must have) for operators with a training mode."""


# Operators that may return (a view of) their input or fresh memory, whichever suits the strides or the values.
_MAYBE_VIEWS: Final = frozenset(
    _words("""
        _unsafe_view alpha_dropout broadcast_tensors conj_physical contiguous diag dropout einsum
        feature_alpha_dropout feature_dropout flatten lift_fresh meshgrid pad ravel repeat_interleave reshape
        reshape_as resolve_conj resolve_neg tile to type_as unsafe_chunk unsafe_split unsafe_split_with_sizes""")
)


def may_alias(target: Any) -> bool | None:
    """Whether a result shares memory with an argument: ``True``, ``False``, or ``None`` if that depends.

    Args:
        target: A functional operator of the list.
    """
    if not isinstance(target, OpOverload):
        return target is operator.getitem
    if _key(target).partition(".")[0] in _MAYBE_VIEWS:
        return None
    return any(result.alias_info is not None for result in schema_of(target).returns)


def is_assertion(name: str) -> bool:
    """Whether a target only checks something and returns nothing."""
    return name in _ASSERTIONS


def why_refused(name: str) -> tuple[str, str]:
    """Rule and explanation for a target that is not on the list."""
    parts = name.split(".")
    if parts[:2] != ["torch", "ops"] or len(parts) < 4:
        return "unknown-operator", "it is no operator of ATen"
    if parts[2] == "higher_order":
        return "higher-order-operator", "control flow and wrapped regions are not data flow"
    if parts[2] != "aten":
        return "custom-operator", f"the operators of {parts[2]!r} are code that comes with another package"
    packet = parts[3].removesuffix("_")
    if packet in _RANDOM:
        return "random-operator", "it draws random numbers, so no measurement could be repeated"
    if packet in _VALUE_DEPENDENT:
        return "value-dependent-shape", "its result's size or the sizes after it depend on values"
    return "unknown-operator", "it is not on the list of operators of inference graphs"
