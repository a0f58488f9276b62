"""The element types of torch, by name: their width, and what the format calls them."""

from __future__ import annotations

from types import MappingProxyType

__all__ = ["FORMAT_NAMES", "ITEMSIZES", "QUANTIZED", "STORAGES"]

_BY_SIZE = {
    1: "bool uint8 int8 float8_e4m3fn float8_e5m2 float8_e8m0fnu float8_e4m3fnuz float8_e5m2fnuz "
    "float4_e2m1fn_x2 bits8 bits1x8 bits2x4 bits4x2",
    2: "uint16 int16 float16 bfloat16 bits16",
    4: "uint32 int32 float32 complex32",
    8: "uint64 int64 float64 complex64",
    16: "complex128",
}
ITEMSIZES = MappingProxyType(
    {name: size for size, names in _BY_SIZE.items() for name in names.split()}
)
"""Name of a torch dtype -> bytes of an element."""

FORMAT_NAMES = MappingProxyType(
    {
        "bool": "BOOL",
        "uint8": "U8",
        "int8": "I8",
        "float8_e4m3fn": "F8_E4M3",
        "float8_e5m2": "F8_E5M2",
        "float8_e8m0fnu": "F8_E8M0",
        "float8_e4m3fnuz": "F8_E4M3FNUZ",
        "float8_e5m2fnuz": "F8_E5M2FNUZ",
        "uint16": "U16",
        "int16": "I16",
        "float16": "F16",
        "bfloat16": "BF16",
        "uint32": "U32",
        "int32": "I32",
        "float32": "F32",
        "uint64": "U64",
        "int64": "I64",
        "float64": "F64",
        "complex64": "C64",
        "float4_e2m1fn_x2": "F4",
    }
)
"""Name of a torch dtype -> name of the format, for those that the format has."""

QUANTIZED = frozenset({"qint8", "qint32", "quint8", "quint4x2", "quint2x4"})
"""Names of dtypes whose tensors have a scale beside their storage."""

STORAGES = MappingProxyType(
    {
        "DoubleStorage": "float64",
        "FloatStorage": "float32",
        "HalfStorage": "float16",
        "LongStorage": "int64",
        "IntStorage": "int32",
        "ShortStorage": "int16",
        "CharStorage": "int8",
        "ByteStorage": "uint8",
        "BoolStorage": "bool",
        "BFloat16Storage": "bfloat16",
        "ComplexDoubleStorage": "complex128",
        "ComplexFloatStorage": "complex64",
        "UntypedStorage": "uint8",
        "QInt8Storage": "qint8",
        "QInt32Storage": "qint32",
        "QUInt8Storage": "quint8",
        "QUInt4x2Storage": "quint4x2",
        "QUInt2x4Storage": "quint2x4",
    }
)
"""Name of a class of storages -> name of its dtype."""
