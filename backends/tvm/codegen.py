"""From a TIR function to an object file that holds one plain C function.

The function takes raw pointers and gives 0: ``int symbol(void *, ...)``. That leaves out TVM's packed calling convention, and with
it every check, every conversion of arguments and every need of a TVM library at run time.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import tvm
from tvm import tirx
from tvm.ir import PointerType, PrimType
from tvm.tirx.buffer import BufferType
from tvm.tirx.compilation_pipeline import get_tir_pipeline, register_tir_pipeline

from qcompiler.backends.tvm.target import KernelTarget

_PIPELINE = "qcompiler"
_C_FUNCTION = 1  # any calling convention but the default keeps TVM from adding its packed interface


def build_object(function: tirx.PrimFunc, target: KernelTarget, symbol: str) -> bytes:
    """Compile to a relocatable object that defines ``symbol``; the same function gives the same bytes."""
    module = tvm.IRModule({symbol: c_function(function, symbol)})
    register_tir_pipeline(_PIPELINE, _kernel_pipeline)
    library = tirx.build(module, tvm.target.Target(target.llvm), pipeline=_PIPELINE)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.o"
        library.write_to_file(str(path), "o")
        return path.read_bytes()


def c_function(function: tirx.PrimFunc, symbol: str) -> tirx.PrimFunc:
    """The same body behind raw pointers: each buffer parameter becomes a pointer and a declaration."""
    parameters, declarations = [], []
    for parameter in function.params:
        if isinstance(parameter.ty, BufferType):
            pointer = tirx.Var(parameter.name, PointerType(parameter.ty.dtype))
            declarations.append(tirx.DeclBuffer(parameter, data=pointer))
            parameters.append(pointer)
        else:
            parameters.append(parameter)
    body = tirx.SeqStmt([*declarations, function.body, tirx.Return(tirx.IntImm("int32", 0))])
    result = tirx.PrimFunc(parameters, body, ret_type=PrimType("int32"), attrs=function.attrs)
    return result.with_attr({"global_symbol": symbol, "calling_conv": _C_FUNCTION, "tirx.noalias": True})


def _kernel_pipeline() -> tuple[object, object, object]:
    """The part of TVM's lowering that such functions need: they have no blocks, no threads of a GPU and no floats below 32 bits.

    All of it takes several times as long as LLVM. Its LowerTVMBuiltin is left out for another reason: it would make each local buffer
    a heap allocation per call.
    """
    passes = [
        tirx.transform.FlattenBuffer(),
        tirx.transform.VectorizeLoop(),
        tirx.transform.StorageRewrite(),
        tirx.transform.UnrollLoop(),
        tirx.transform.StmtSimplify(),
        tirx.transform.AnnotateEntryFunc(),
        tirx.transform.SplitHostDevice(),
        tirx.transform.MakePackedAPI(),
    ]
    _, _, finalize_device = get_tir_pipeline("s_tir")
    return tvm.ir.transform.Sequential(passes), tirx.transform.LowerIntrin, lambda: finalize_device
