"""What is read from a compiled module's text."""

import jax
import jax.numpy as jnp
import pytest

from jaxtune.preflight import hlo, memory, modules

# A loop of 16 rounds. An all-gather that overlaps with products stands in two fusions of its body;
# a kernel has 8 x 4 heads of 1,024 queries and keys, and visits 3 of 4 tiles.
TEXT = """
HloModule jit_step

%start (p: bf16[4]) -> bf16[64] {
  %p = bf16[4]{0} parameter(0)
  ROOT %all-gather.1 = bf16[64]{0} all-gather(%p), channel_id=5, metadata={op_name="a/gather"}
}

%done (p: bf16[4]) -> bf16[64] {
  %p = bf16[4]{0} parameter(0)
  ROOT %all-gather.2 = bf16[64]{0} all-gather(%p), channel_id=5, metadata={op_name="a/gather"}
}

%body (s: (s32[], bf16[4])) -> (s32[], bf16[4]) {
  %f.1 = bf16[64]{0} fusion(%p), kind=kCustom, calls=%start
  %f.2 = bf16[64]{0} fusion(%p), kind=kOutput, calls=%done, metadata={op_name="a/dot"}, \
backend_config={"estimated_cycles":"1000"}
  %splash_mha_dq.1 = bf16[8,4,1024,64]{3,2,1,0} custom-call(%a, %b), \
custom_call_target="tpu_custom_call", operand_layout_constraints={s8[1,2,2]{2,1,0}, \
f32[8,4,1024,64]{3,2,1,0}, f32[8,2,1024,64]{3,2,1,0}, s32[8,1024]{1,0}}, \
frontend_attributes={kernel_metadata={
"xprof_metadata":"{}"
}}, metadata={op_name="a/visits_0.7500/attend"}
}

%condition (s: (s32[], bf16[4])) -> pred[] {
  %bound = s32[]{:T(128)} constant(16)
}

ENTRY %main (x: bf16[4]) -> bf16[4] {
  %while.1 = (s32[], bf16[4]) while(%t), condition=%condition, body=%body
  %all-reduce-start.1 = f32[10]{0} all-reduce-start(%x), channel_id=7
  %all-reduce.2 = f32[10]{0} all-reduce(%x), channel_id=7
  %all-gather-start.3 = ((f32[1], bf16[2]), (f32[4], bf16[8])) all-gather-start(%x, %y)
  %copy.1 = bf16[4]{0} copy(%x), backend_config={"estimated_cycles":"7"}
}
"""


def test_loops_are_multiplied_out():
  found = list(modules.operations(hlo.parse(TEXT)))
  cycles = {one.name: one.cycles for one in found if one.cycles}
  assert cycles == {"a/dot": 16 * 1000, "copy.1": 7}
  moved = [(one.collective, one.moved) for one in found if one.collective]
  overlapping = ("all-gather", 16 * 64 * 2)
  assert moved == [overlapping, ("all-reduce", 40), ("all-reduce", 40), ("all-gather", 32)]
  (kernel,) = [one for one in found if one.kernel]
  products = 2 * 3 * (8 * 4 * 1024 * 64) * 1024
  assert kernel.kernel == "tpu_custom_call" and kernel.flops == 16 * products * 0.75


@pytest.mark.parametrize(("name", "moved"), [("", [40, 40]), ("layers/attend", [8, 32])])
def test_the_dearest_branch_counts(name, moved):
  """Both notations of a conditional, as of a step that a trial may skip.

  Where a condition chooses a layer's attention, both count, by the known share of local layers.
  """
  branch = """
%near{0} (x: f32[4]) -> f32[4] {{
  ROOT %k.{0} = f32[4] custom-call(%x), custom_call_target="__cudnn$fmhaSoftmax", NAMED
}}

%far{0} (x: f32[4]) -> f32[4] {{
  %s.{0} = f32[10] all-reduce(%x), channel_id=1{0}
  ROOT %b.{0} = f32[4] custom-call(%x), custom_call_target="__cudnn$fmhaScaleBiasSoftmax", NAMED
}}
"""
  text = (
    branch.format(1)
    + branch.format(2)
    + """
ENTRY %main (x: f32[4]) -> f32[4] {
  %c.1 = f32[4] conditional(%p, %x, %x), true_computation=%near1, false_computation=%far1
  %c.2 = f32[4] conditional(%i, %x, %x), branch_computations={%near2, %far2}, metadata={%x}
}
"""
  ).replace("NAMED", f'metadata={{op_name="{name}"}}')
  found = list(modules.operations(hlo.parse(text), local=0.8))
  kernels = [one.kernel for one in found if one.kernel]
  near = ["__cudnn$fmhaSoftmax"] if name else []
  assert kernels == 2 * [*near, "__cudnn$fmhaScaleBiasSoftmax"]
  assert [one.moved for one in found if one.collective] == pytest.approx(moved)


def test_a_loop_with_an_open_end_runs_once():
  opened = TEXT.replace("constant(16)", "constant(16)\n  ROOT %more = pred[] and(%below, %going)")
  cycles = [one.cycles for one in modules.operations(hlo.parse(opened)) if one.name == "a/dot"]
  assert max(cycles) == 1000


@pytest.mark.parametrize("rounds", [3, 11])
def test_the_rounds_of_a_real_loop(rounds):
  """A sum over devices in each round of a scan."""
  mesh = jax.make_mesh((4,), ("x",), (jax.sharding.AxisType.Auto,))
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))

  @jax.jit
  def run(x):
    return jax.lax.scan(lambda c, _: (c * jnp.sin(c).sum(), None), x, length=rounds)[0]

  text = run.lower(jax.ShapeDtypeStruct((8,), jnp.float32, sharding=rows)).compile().as_text()
  moved = [
    one.moved for one in modules.operations(hlo.parse(text)) if one.collective == "all-reduce"
  ]
  assert sum(moved) == 4 * rounds


def test_what_a_program_reads_and_writes():
  """Of weights that are stacked for a loop, each round reads its own."""
  layers, width, rows = 8, 64, 32
  text = lambda f, *shapes: (
    jax.jit(f).lower(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)).compile().as_text()
  )
  total = lambda module: sum(one.bytes for one in modules.operations(module))
  product = hlo.parse(text(jnp.matmul, (rows, width), (width, width)))
  assert total(product) == 4 * (2 * rows * width + width * width)
  loop = lambda x, w: jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]
  looped = hlo.parse(text(loop, (rows, width), (layers, width, width)))
  weights, states = 4 * layers * width * width, 4 * layers * rows * width
  assert weights + 2 * states <= total(looped) < 3 * weights + 6 * states
  (dot,) = [i for part in looped.computations.values() for i in part if "dot" in i.opcode]
  assert looped.source(dot).endswith(f"test_modules.py:{loop.__code__.co_firstlineno}")


def test_what_is_in_memory_at_the_peak():
  """Four wide arrays are made, of which at most three are needed at once, and a loop's stack."""

  def run(x):
    a = jnp.sin(x)[:, None] * jnp.ones((1, 4096))
    b = jnp.cumsum(a, 1)
    c = jnp.cumsum(b, 0) + a
    return jax.lax.map(lambda row: jnp.cumsum(row), c * b).sum()

  compiled = jax.jit(run).lower(jax.ShapeDtypeStruct((512,), jnp.float32)).compile()
  stated = compiled.memory_analysis().temp_size_in_bytes
  found = memory.peak(hlo.parse(compiled.as_text()), stated)
  assert found.bytes == pytest.approx(stated, rel=0.05)


def test_the_memory_of_nested_tuples():
  """As a conditional returns them: the second element is of two arrays."""
  text = """HloModule m, is_scheduled=true

ENTRY %main (a: f32[256]) -> f32[4096] {
  %a = f32[256]{0} parameter(0)
  %all = (f32[256]{0:T(1024)}, (f32[512]{0}, /*index=2*/f32[1024]{0})) custom-call(%a)
  %both = (f32[512]{0}, f32[1024]{0}) get-tuple-element(%all), index=1
  %b = f32[1024]{0} get-tuple-element(%both), index=1
  ROOT %c = f32[4096]{0} custom-call(%b)
}
"""
  module = hlo.parse(text)
  made = module.computations["main"][1]
  assert hlo.element(made, 0) == slice(0, 1) and hlo.element(made, 1) == slice(1, 3)
  found = memory.peak(module, 0)
  assert [buffer.array.dims for buffer in found.buffers] == [(1024,), (4096,)]


def test_the_memory_of_collectives_of_several_arrays():
  text = """HloModule m, is_scheduled=true

ENTRY %main (a: f32[256], b: f32[512]) -> f32[1024] {
  %a = f32[256]{0} parameter(0)
  %b = f32[512]{0} parameter(1)
  %start = ((f32[256]{0}, f32[512]{0}), (f32[1024]{0}, f32[2048]{0})) all-gather-start(%a, %b)
  %done = (f32[1024]{0}, f32[2048]{0}) all-gather-done(%start)
  %c = f32[1024]{0} get-tuple-element(%done), index=0
  %d = f32[2048]{0} get-tuple-element(%done), index=1
  %sum = f32[1024]{0} negate(%c)
  ROOT %e = f32[2048]{0} add(%sum, %d)
}
"""
  found = memory.peak(hlo.parse(text), 0)
  assert found.bytes == 4 * (1024 + 2048 + 2048)  # sum, d and e
