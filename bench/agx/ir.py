"""What the translator to SPIR-V does not take in clang's LLVM IR, said with what it takes.

SPIR-V 1.x has no bfloat16: values become 16-bit integers, and conversions shifts, as AGX does them. Kernels do no
arithmetic in it; IR that does is refused. Threadgroup variables become what OpenCL has, and the entry point gets the
size of its threadgroup.
"""

from __future__ import annotations

import re

from msl.compiler import CompileError

TYPE = r"((?:<\d+ x )?(?:bfloat|float)>?)"
CONVERSION = re.compile(rf"(%[\w.]+) = fp(?:ext|trunc) (?:\w+ )*?{TYPE} (\S+) to {TYPE}(?=[,\s])")
ARITHMETIC = re.compile(r"^.*= f(?:add|mul|sub|div|rem|cmp|neg)\b.*\bbfloat\b.*$", re.M)
ENTRY = "kernel_entry"


def lower(ir: str, threads: int) -> str:
    """The IR that llvm-spirv takes. threads: of a threadgroup. Raises CompileError for arithmetic in bfloat16."""
    ir = CONVERSION.sub(conversion, ir)
    if arithmetic := ARITHMETIC.search(ir):
        raise CompileError(f"bfloat16 arithmetic, of which AGX has none: {arithmetic[0].strip()}")
    used = sorted(set(re.findall(r"@(bfloat_to_float|float_to_bfloat)_(\d+)", ir)))
    ir = re.sub(r"\b0xR([0-9A-F]{4})", lambda m: str(int(m[1], 16)), ir)
    ir = re.sub(r"\bbfloat\b", "i16", ir)
    ir = re.sub(r"linkonce_odr dso_local local_unnamed_addr addrspace\(3\)", "internal addrspace(3)", ir)
    ir = re.sub(r"(@\S+ = internal addrspace\(3\) global .*?) zeroinitializer", r"\1 undef", ir)
    ir = re.sub(r"(@\S+ = internal addrspace\(3\) global .*?), comdat(?:\([^)]*\))?", r"\1", ir)
    ir, count = re.subn(
        rf"(define dso_local spir_kernel void @{ENTRY}\(.*?\)[^{{]*?) \{{", r"\1 !reqd_work_group_size !9999 {", ir
    )
    if count != 1:
        raise CompileError(f"expected one entry point in the IR, found {count}")
    metadata = [
        "!opencl.ocl.version = !{!9998}",
        "!opencl.spir.version = !{!9998}",
        "!opencl.enable.FP_CONTRACT = !{}",
        "!9998 = !{i32 2, i32 0}",
        f"!9999 = !{{i32 {threads}, i32 1, i32 1}}",
    ]
    functions = [definition(direction, int(lanes)) for direction, lanes in used]
    return "\n".join([ir, *functions, *metadata, ""])


def conversion(match: re.Match[str]) -> str:
    result, source, value, target = match.groups()
    if "bfloat" not in source + target:
        return match[0]
    lanes = re.match(r"<(\d+) x", source)
    direction = "bfloat_to_float" if "bfloat" in source else "float_to_bfloat"
    return f"{result} = call spir_func {target} @{direction}_{lanes[1] if lanes else 0}({source} {value})"


def definition(direction: str, lanes: int) -> str:
    """The function of one conversion: of vectors of so many lanes, 0 a scalar."""

    def typed(scalar: str) -> str:
        return f"<{lanes} x {scalar}>" if lanes else scalar

    def constant(value: int) -> str:
        return f"<{', '.join([f'i32 {value}'] * lanes)}>" if lanes else str(value)

    short, word, real = typed("i16"), typed("i32"), typed("float")
    if direction == "bfloat_to_float":
        result, argument = real, short
        body = [
            f"%a = zext {short} %x to {word}",
            f"%b = shl {word} %a, {constant(16)}",
            f"%r = bitcast {word} %b to {real}",
        ]
    else:  # to nearest, ties to even
        result, argument = short, real
        body = [
            f"%a = bitcast {real} %x to {word}",
            f"%b = lshr {word} %a, {constant(16)}",
            f"%c = and {word} %b, {constant(1)}",
            f"%d = add {word} %c, {constant(0x7FFF)}",
            f"%e = add {word} %a, %d",
            f"%f = lshr {word} %e, {constant(16)}",
            f"%r = trunc {word} %f to {short}",
        ]
    lines = "\n  ".join([*body, f"ret {result} %r"])
    return f"define internal spir_func {result} @{direction}_{lanes}({argument} %x) alwaysinline {{\n  {lines}\n}}"
