//! cuBLASLt: descriptors and products. `product.rs` computes them.

use std::collections::BTreeMap;
use std::ffi::{c_int, c_uint, c_void};
use std::sync::{Mutex, PoisonError};

use cudarc::cublaslt::sys::{
    cublasComputeType_t as Compute, cublasLtHandle_t, cublasLtMatmulAlgo_t, cublasLtMatmulDesc_t,
    cublasLtMatmulDescAttributes_t as DescAttribute, cublasLtMatmulHeuristicResult_t,
    cublasLtMatmulPreference_t, cublasLtMatrixLayout_t, cublasLtMatrixLayoutAttribute_t as LayoutAttribute,
    cublasStatus_t as Status, cudaDataType, cudaStream_t,
};
use cudarc::driver::sys::CUresult;
use kron_core::Dtype;

use super::{give, key};
use crate::driver::within;
use crate::product::{Operand, Product};
use crate::work::Work;

/// A descriptor: of a product's transpositions, of a matrix, or of preferences.
#[derive(Clone, Copy)]
enum Descriptor {
    Product { transposed: [bool; 2] },
    Layout { operand: Operand, batch: usize },
    Preference,
}

static DESCRIPTORS: Mutex<BTreeMap<u64, Descriptor>> = Mutex::new(BTreeMap::new());

fn descriptors<T>(f: impl FnOnce(&mut BTreeMap<u64, Descriptor>) -> Result<T, Status>) -> Result<T, Status> {
    f(&mut DESCRIPTORS.lock().unwrap_or_else(PoisonError::into_inner))
}

fn status(result: Result<(), Status>) -> Status {
    result.err().unwrap_or(Status::CUBLAS_STATUS_SUCCESS)
}

const INVALID: Status = Status::CUBLAS_STATUS_INVALID_VALUE;

/// # Safety
/// `to` is null or valid for a write.
unsafe fn create<T>(to: *mut *mut T, descriptor: Descriptor) -> Status {
    status(descriptors(|all| {
        let handle = all.last_key_value().map_or(16, |(last, _)| last + 16);
        all.insert(handle, descriptor);
        // SAFETY: the caller's promise.
        unsafe { give(to, handle as *mut T) }.map_err(|_| INVALID)
    }))
}

fn destroy<T>(handle: *mut T) -> Status {
    status(descriptors(|all| all.remove(&(handle as u64)).map(drop).ok_or(INVALID)))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cublasLtCreate(handle: *mut cublasLtHandle_t) -> Status {
    if within(|_, _| Ok(())) != CUresult::CUDA_SUCCESS {
        return Status::CUBLAS_STATUS_NOT_INITIALIZED;
    }
    // SAFETY: the caller's pointer is null or valid, in this function and all below.
    status(unsafe { give(handle, 16 as cublasLtHandle_t) }.map_err(|_| INVALID))
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtDestroy(_: cublasLtHandle_t) -> Status {
    Status::CUBLAS_STATUS_SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cublasLtMatmulDescCreate(
    desc: *mut cublasLtMatmulDesc_t,
    compute: Compute,
    scale: cudaDataType,
) -> Status {
    if (compute, scale) != (Compute::CUBLAS_COMPUTE_32F, cudaDataType::CUDA_R_32F) {
        return Status::CUBLAS_STATUS_NOT_SUPPORTED;
    }
    // SAFETY: as above.
    unsafe { create(desc, Descriptor::Product { transposed: [false; 2] }) }
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtMatmulDescDestroy(desc: cublasLtMatmulDesc_t) -> Status {
    destroy(desc)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cublasLtMatmulDescSetAttribute(
    desc: cublasLtMatmulDesc_t,
    attribute: c_uint,
    value: *const c_void,
    bytes: usize,
) -> Status {
    status(descriptors(|all| {
        let Some(Descriptor::Product { transposed }) = all.get_mut(&(desc as u64)) else {
            return Err(INVALID);
        };
        let side = match attribute {
            a if a == DescAttribute::CUBLASLT_MATMUL_DESC_TRANSA as c_uint => 0,
            a if a == DescAttribute::CUBLASLT_MATMUL_DESC_TRANSB as c_uint => 1,
            _ => return Err(INVALID),
        };
        // SAFETY: as above; an attribute of four bytes.
        match unsafe { value.cast::<i32>().as_ref() }.filter(|_| bytes == 4) {
            Some(&value @ 0..=1) => transposed[side] = value == 1,
            _ => return Err(INVALID),
        }
        Ok(())
    }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cublasLtMatrixLayoutCreate(
    layout: *mut cublasLtMatrixLayout_t,
    of: cudaDataType,
    rows: u64,
    cols: u64,
    stride: i64,
) -> Status {
    let dtype = match of {
        cudaDataType::CUDA_R_32F => Dtype::F32,
        cudaDataType::CUDA_R_16F => Dtype::F16,
        cudaDataType::CUDA_R_16BF => Dtype::Bf16,
        _ => return Status::CUBLAS_STATUS_NOT_SUPPORTED,
    };
    let (rows, cols, stride) = (rows as usize, cols as usize, stride as usize);
    if rows == 0 || cols == 0 || stride < rows {
        return INVALID;
    }
    let operand = Operand { start: 0, dtype, rows, cols, stride, step: 0, transposed: false };
    // SAFETY: as above.
    unsafe { create(layout, Descriptor::Layout { operand, batch: 1 }) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cublasLtMatrixLayoutSetAttribute(
    layout: cublasLtMatrixLayout_t,
    attribute: c_uint,
    value: *const c_void,
    bytes: usize,
) -> Status {
    status(descriptors(|all| {
        let Some(Descriptor::Layout { operand, batch }) = all.get_mut(&(layout as u64)) else {
            return Err(INVALID);
        };
        let (count, step) = (value.cast::<i32>(), value.cast::<i64>());
        match (attribute, bytes) {
            (a, 4) if a == LayoutAttribute::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT as c_uint => {
                // SAFETY: as above; the attribute has four bytes.
                *batch = unsafe { count.read_unaligned() } as usize;
            }
            (a, 8) if a == LayoutAttribute::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET as c_uint => {
                // SAFETY: as above; the attribute has eight bytes.
                operand.step = unsafe { step.read_unaligned() } as usize;
            }
            _ => return Err(INVALID),
        }
        Ok(())
    }))
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtMatrixLayoutDestroy(layout: cublasLtMatrixLayout_t) -> Status {
    destroy(layout)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cublasLtMatmulPreferenceCreate(preference: *mut cublasLtMatmulPreference_t) -> Status {
    // SAFETY: as above.
    unsafe { create(preference, Descriptor::Preference) }
}

/// Takes any preference: there is one way to multiply.
#[unsafe(no_mangle)]
extern "C" fn cublasLtMatmulPreferenceSetAttribute(
    preference: cublasLtMatmulPreference_t,
    _: c_uint,
    _: *const c_void,
    _: usize,
) -> Status {
    let known = |all: &mut BTreeMap<u64, Descriptor>| match all.get(&(preference as u64)) {
        Some(Descriptor::Preference) => Ok(()),
        _ => Err(INVALID),
    };
    status(descriptors(known))
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtMatmulPreferenceDestroy(preference: cublasLtMatmulPreference_t) -> Status {
    destroy(preference)
}

/// Checks a product's descriptors and puts its operands together, without their addresses.
fn product(desc: cublasLtMatmulDesc_t, layouts: [cublasLtMatrixLayout_t; 3]) -> Result<Product, Status> {
    descriptors(|all| {
        let Some(Descriptor::Product { transposed }) = all.get(&(desc as u64)) else { return Err(INVALID) };
        let layout = |i: usize| match all.get(&(layouts[i] as u64)) {
            Some(Descriptor::Layout { operand, batch }) => Ok((*operand, *batch)),
            _ => Err(INVALID),
        };
        let ((mut a, batch), (mut b, of_b), (d, of_d)) = (layout(0)?, layout(1)?, layout(2)?);
        (a.transposed, b.transposed) = (transposed[0], transposed[1]);
        let fits = a.dim().1 == b.dim().0 && d.dim() == (a.dim().0, b.dim().1);
        if !fits || batch != of_b || batch != of_d {
            return Err(INVALID);
        }
        Ok(Product { alpha: 1.0, beta: 0.0, a, b, d, batch })
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cublasLtMatmulAlgoGetHeuristic(
    _: cublasLtHandle_t,
    desc: cublasLtMatmulDesc_t,
    a: cublasLtMatrixLayout_t,
    b: cublasLtMatrixLayout_t,
    c: cublasLtMatrixLayout_t,
    d: cublasLtMatrixLayout_t,
    _: cublasLtMatmulPreference_t,
    wanted: c_int,
    results: *mut cublasLtMatmulHeuristicResult_t,
    count: *mut c_int,
) -> Status {
    if c != d || wanted < 1 {
        return Status::CUBLAS_STATUS_NOT_SUPPORTED;
    }
    let found = cublasLtMatmulHeuristicResult_t {
        algo: cublasLtMatmulAlgo_t { data: [0; 8] },
        workspaceSize: 0,
        state: Status::CUBLAS_STATUS_SUCCESS,
        wavesCount: 1.0,
        reserved: [0; 4],
    };
    status(product(desc, [a, b, d]).and_then(|_| {
        // SAFETY: as above; there is room for the one result.
        unsafe { give(results, found).and_then(|()| give(count, 1)) }.map_err(|_| INVALID)
    }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cublasLtMatmul(
    _: cublasLtHandle_t,
    desc: cublasLtMatmulDesc_t,
    alpha: *const c_void,
    a: *const c_void,
    a_layout: cublasLtMatrixLayout_t,
    b: *const c_void,
    b_layout: cublasLtMatrixLayout_t,
    beta: *const c_void,
    c: *const c_void,
    c_layout: cublasLtMatrixLayout_t,
    d: *mut c_void,
    d_layout: cublasLtMatrixLayout_t,
    _: *const cublasLtMatmulAlgo_t,
    _: *mut c_void,
    _: usize,
    stream: cudaStream_t,
) -> Status {
    if c != d.cast_const() || c_layout != d_layout {
        return Status::CUBLAS_STATUS_NOT_SUPPORTED;
    }
    status(product(desc, [a_layout, b_layout, d_layout]).and_then(|mut product| {
        // SAFETY: the scales are float32 on the host, as their descriptor says.
        (product.alpha, product.beta) = unsafe { (alpha.cast::<f32>().read(), beta.cast::<f32>().read()) };
        (product.a.start, product.b.start, product.d.start) = (a as u64, b as u64, d as u64);
        let queued = within(|driver, context| {
            driver.queue(key(context, stream.cast()), Work::Product(Box::new(product))).map(drop)
        });
        if queued == CUresult::CUDA_SUCCESS { Ok(()) } else { Err(Status::CUBLAS_STATUS_EXECUTION_FAILED) }
    }))
}
