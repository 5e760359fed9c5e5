"""Quantization arithmetic: affine maps, ranges, observers, fake quantization, integer products, noise ratios."""

from workers.quant.affine import CodeRange, dequantize, quantize, quantize_dequantize, scale_and_zero_point
from workers.quant.clipping_kl import kl_range
from workers.quant.clipping_mse import mse_range
from workers.quant.fake_quantize import (
    QuantizationParameters,
    apply,
    dequantize_codes,
    quantize_codes,
)
from workers.quant.gptq import compensated_codes
from workers.quant.integer import QuantizedMatrix, integer_matmul
from workers.quant.moments import InputMoments
from workers.quant.noise import predicted_sqnr_db, predicted_sqnr_for_range_db, sqnr_db
from workers.quant.observers import HistogramObserver, MinMaxObserver
from workers.quant.quantizer import (
    WeightQuantizer,
    fake_quantize,
    fake_quantize_all,
    quantization_parameters,
)
from workers.quant.ranges import choose_range, minmax_range, percentile_range
from workers.quant.slices import SliceLayout
from workers.quant.storage import storage_bits
from workers.quant.store import QuantizedWeights, by_shared_work
from workers.quant.straight_through import LearnedQuantizer, fake_quantize_straight_through

__all__ = [
    "CodeRange",
    "HistogramObserver",
    "InputMoments",
    "LearnedQuantizer",
    "MinMaxObserver",
    "QuantizationParameters",
    "QuantizedMatrix",
    "QuantizedWeights",
    "SliceLayout",
    "WeightQuantizer",
    "apply",
    "by_shared_work",
    "choose_range",
    "compensated_codes",
    "dequantize",
    "dequantize_codes",
    "fake_quantize",
    "fake_quantize_all",
    "fake_quantize_straight_through",
    "integer_matmul",
    "kl_range",
    "minmax_range",
    "mse_range",
    "percentile_range",
    "predicted_sqnr_db",
    "predicted_sqnr_for_range_db",
    "quantization_parameters",
    "quantize",
    "quantize_codes",
    "quantize_dequantize",
    "scale_and_zero_point",
    "sqnr_db",
    "storage_bits",
]
