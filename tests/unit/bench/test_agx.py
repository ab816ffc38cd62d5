"""bench.agx without its compiler: what it makes of LLVM IR, and what it reads out of a disassembly."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from bench.agx import ir
from bench.agx.compiler import Code, code_of, read
from bench.agx.debian import Debian
from bench.agx.machine import Instruction, Region, Slots, price, read_program
from bench.agx.table import Row

from msl.compiler import CompileError
from nvptx.compiler import find_clang

# A program of Mesa's own, then a kernel with a loop in a loop.
DISASSEMBLY = """
   0: 0501b00d00c47200       load     r0_r1_r2, du0, 11, lsl 1, i32, xyz, a
   8: 8800                   stop
   0: 7e11800a8000           mov      r4, $r0
   6: 3a11800a8000           ffma     r5, r4, r4, r4
   c: 2e11800a8000           shl      r6, r4, 2
  12: 1a11800a8000           iadd     dr8, dr8, 4
  18: 000000000000           jmp_any  -12
  1e: 6f11800a8000           simd_fadd r4, r4
  24: 000000000000           jmp_any  -30
  2a: 8800                   stop
"""
STATISTICS = (
    "MESA: SHADER-DB: compute shader: 421 instrs, 3 alu, 2862 code size, 47 gprs, 12 scratch, 1024 threads, 1 loops,"
    " 5:7 spills:fills"
)
IR = """
@x = linkonce_odr dso_local local_unnamed_addr addrspace(3) global [4 x float] zeroinitializer, comdat, align 128
define dso_local spir_kernel void @kernel_entry(ptr addrspace(1) %p) local_unnamed_addr {
  %of = load <4 x bfloat>, ptr addrspace(1) %p, align 8
  %wide = fpext <4 x bfloat> %of to <4 x float>
  %first = extractelement <4 x float> %wide, i32 0
  %back = fptrunc contract float %first to bfloat
  store bfloat %back, ptr addrspace(1) %p, align 2
  ret void
}
"""


INNER, OUTER = Region(2, 4, loop=True), Region(1, 6, loop=True)


def test_the_longest_program_and_its_loops() -> None:
    program = read_program(DISASSEMBLY)
    assert [i.name for i in program.instructions] == [
        "mov", "ffma", "shl", "iadd", "jmp_any", "simd_fadd", "jmp_any", "stop"
    ]  # fmt: skip
    assert program.loops == [INNER, OUTER]
    assert [i.name for i in program.body(OUTER)] == ["ffma", "simd_fadd", "jmp_any"]


def test_what_a_branch_skips_is_a_region_that_runs_as_often_as_what_is_around_it() -> None:
    skipping = DISASSEMBLY.replace("jmp_any  -12", "jmp_any  12")
    program = read_program(skipping)
    skipped = Region(4, 5, loop=False)
    assert [region for region in program.regions if not region.loop] == [Region(0, 7, loop=False), skipped]
    assert program.around(skipped) == OUTER
    assert program.runs(skipped, lambda program, region: 4 if region == OUTER else None) == 4


def test_slots_count_loops_as_often_as_they_run() -> None:
    """mov 1, four times ffma 1 and a reduction of 24, twelve times a 64-bit addition of 4, and a shift of 4 beside."""
    slots = read_program(DISASSEMBLY).slots(lambda program, region: {INNER: 12, OUTER: 4}.get(region))
    assert slots == Slots(1 + 4 * 25 + 12 * 4, 12 * 4)
    assert slots.total == 149


@pytest.mark.parametrize(
    ("name", "operands", "slots"),
    [
        ("lload", "r0_r1_r2_r3, r4, 0, i32, xyzw", Slots()),
        ("csel", "$r2, 1, ^r2, 1, ^r2, sgt", Slots(1)),
        ("iadd", "r2, r2, 4", Slots(1)),
        ("iadd", "dr2, dr2, 4", Slots(4)),
        ("shuffle_xor", "r2, r2, 16", Slots(2)),
        ("rsqrt", "r2, r2", Slots(0, 8)),
        ("s32_to_f", "r2, r2", Slots(0, 4)),
    ],
)
def test_prices(name: str, operands: str, slots: Slots) -> None:
    assert price(Instruction(0, name, operands)) == slots


def test_an_instruction_without_a_price_is_named() -> None:
    with pytest.raises(ValueError, match="no price for the instruction 'teleport r2'"):
        price(Instruction(0, "teleport", "r2"))


def test_statistics() -> None:
    code = read(
        DISASSEMBLY + "threadgroup memory: 8704\n", f"warning\n{STATISTICS.replace('421', '9')}\n{STATISTICS}\n"
    )
    assert code == Code(DISASSEMBLY + "threadgroup memory: 8704\n", 421, 2862, 47, 1024, 5, 7, 12, 8704)
    with pytest.raises(CompileError, match="no statistics"):
        read("", "")


def test_what_a_core_holds_is_bounded_by_registers_and_by_memory() -> None:
    def simdgroups(resident: int, memory: int, threads: int) -> int:
        return Row("", Code("", 1, 1, 1, resident, 0, 0, 0, memory), threads, None).simdgroups

    assert simdgroups(832, 0, 128) == 24  # six threadgroups of 4, not six and a half
    assert simdgroups(832, 17 << 10, 128) == 12
    assert simdgroups(832, 17 << 10, 256) == 24
    assert Row("", None, 64, None, "failed").simdgroups == 0


def test_bfloat_becomes_integers_and_threadgroup_memory_opencl_s(tmp_path: Path) -> None:
    lowered = ir.lower(IR, 128)
    assert "bfloat " not in lowered
    assert "bfloat>" not in lowered
    assert "internal addrspace(3) global [4 x float] undef, align 128" in lowered
    assert "!reqd_work_group_size !9999 {" in lowered
    assert "!9999 = !{i32 128, i32 1, i32 1}" in lowered
    assert "call spir_func <4 x float> @bfloat_to_float_4(<4 x i16> %of)" in lowered
    assert "call spir_func i16 @float_to_bfloat_0(float %first)" in lowered
    (tmp_path / "kernel.ll").write_text(lowered)
    command = [*find_clang(), "--target=x86_64-linux", "-S", "-emit-llvm", "kernel.ll", "-o", "-"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_arithmetic_in_bfloat_is_refused() -> None:
    with pytest.raises(CompileError, match=r"bfloat16 arithmetic.*fadd bfloat %back, %back"):
        ir.lower(IR.replace("  ret void", "  %sum = fadd bfloat %back, %back\n  ret void"), 128)


def test_the_entry_takes_buffers_in_the_order_of_their_index() -> None:
    text = (
        "#include <metal_stdlib>\nusing namespace metal;\nkernel void f(device float* y [[buffer(1)]], "
        "constant int& n [[buffer(0)]], uint s [[simdgroup_index_in_threadgroup]]) { y[s] = n; }"
    )
    entry = code_of(text, "f").splitlines()[-1]
    assert "kernel_entry(constant const char* buffer0, device char* buffer1)" in entry
    assert "f(msl::Pointer(buffer1), msl::ConstantPointer(buffer0), msl::Builtin(msl::simdgroup()))" in entry


def test_a_folder_that_is_not_set_up_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}: expected the Debian folder that `make agx` sets up"):
        Debian(tmp_path)


def test_setup_says_how_it_is_called() -> None:
    script = Path(ir.__file__).parent / "setup.sh"
    result = subprocess.run(["sh", str(script)], capture_output=True, text=True)
    assert result.returncode == 2
    assert "usage:" in result.stderr
