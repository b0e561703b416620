//! Graphs and their replay.

use std::ffi::c_ulonglong;

use cudarc::driver::sys::{CUgraph, CUgraphExec, CUresult, CUstream};

use super::{give, key};
use crate::driver::{with, within};
use crate::work::Work;

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGraphInstantiateWithFlags(
    executable: *mut CUgraphExec,
    graph: CUgraph,
    _: c_ulonglong,
) -> CUresult {
    within(|driver, _| {
        let nodes = driver.graphs.get(&(graph as u64)).ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?.clone();
        let new = driver.handle();
        driver.executables.insert(new, nodes);
        // SAFETY: the caller's pointer is null or valid.
        unsafe { give(executable, new as CUgraphExec) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphLaunch(executable: CUgraphExec, stream: CUstream) -> CUresult {
    within(|driver, context| {
        let nodes = driver.executables.get(&(executable as u64));
        let nodes = nodes.ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?.clone();
        driver.queue(key(context, stream), Work::Graph(nodes)).map(drop)
    })
}

/// Work that was launched keeps what it runs.
#[unsafe(no_mangle)]
extern "C" fn cuGraphExecDestroy(executable: CUgraphExec) -> CUresult {
    with(|driver| {
        let found = driver.executables.remove(&(executable as u64));
        found.map(drop).ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphDestroy(graph: CUgraph) -> CUresult {
    with(|driver| driver.graphs.remove(&(graph as u64)).map(drop).ok_or(CUresult::CUDA_ERROR_INVALID_VALUE))
}
