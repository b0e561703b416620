//! Products by cuBLASLt: sums in float32 for every type, any of its algorithms.

use std::ffi::{c_int, c_void};
use std::sync::Arc;

use cudarc::cublaslt::{result, sys};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use half::{bf16, f16};
use kron_core::{Error, Result};
use sys::cublasLtMatmulDescAttributes_t as DescAttribute;
use sys::cublasLtMatmulPreferenceAttributes_t as PrefAttribute;
use sys::cublasLtMatrixLayoutAttribute_t as LayoutAttribute;

use super::gpu::{Device, failed};
use super::product::{Operand, Product};

/// Scratch that an algorithm may ask for: what NVIDIA recommends for its largest GPUs.
const WORKSPACE: usize = 32 << 20;
/// Algorithms that the heuristic is asked for.
const CHOICES: usize = 8;
/// Times that each of them is measured.
const TRIALS: usize = 3;
/// What every allocation starts on a multiple of, in bytes.
const ALIGNED: usize = 256;

/// The type of an operand's numbers.
pub type Type = sys::cudaDataType;

/// The types of activations.
pub const fn type_of(dtype: kron_core::Dtype) -> Type {
    match dtype {
        kron_core::Dtype::F32 => Type::CUDA_R_32F,
        kron_core::Dtype::F16 => Type::CUDA_R_16F,
        kron_core::Dtype::Bf16 => Type::CUDA_R_16BF,
    }
}

/// The library on one stream.
pub struct Library {
    handle: sys::cublasLtHandle_t,
    stream: Arc<CudaStream>,
    workspace: CudaSlice<u8>,
}

/// A product that the library was asked about.
pub struct Planned {
    desc: Desc,
    layouts: [Layout; 3],
    alpha: f32,
    beta: f32,
    /// What the heuristic proposes, its best guess first.
    algorithms: Vec<sys::cublasLtMatmulAlgo_t>,
}

impl Library {
    /// The library, for a stream of a device whose context is current.
    pub fn new(stream: &Arc<CudaStream>) -> Result<Self> {
        Ok(Self {
            workspace: stream.alloc_zeros(WORKSPACE).map_err(failed("cuBLASLt's workspace"))?,
            handle: result::create_handle().map_err(failed("cuBLASLt"))?,
            stream: Arc::clone(stream),
        })
    }

    /// Asks for the algorithms of a product; `types` are those of A, B and C.
    ///
    /// # Errors
    /// A product that the library does not compute.
    pub fn plan(&self, product: &Product, types: [Type; 3]) -> Result<Planned> {
        self.ask(product, types).map_err(|e| Error::Device(format!("cuBLASLt says {e:?} to {product:?}")))
    }

    fn ask(&self, product: &Product, [a, b, c]: [Type; 3]) -> Result<Planned, result::CublasError> {
        let gemm = product.column_major();
        let types = [b, a, c]; // in the order of `gemm.operands`
        let desc = Desc::new(gemm.operands[0].transposed, gemm.operands[1].transposed)?;
        let layout = |i: usize| Layout::new(types[i], gemm.stored(i), &gemm.operands[i], gemm.batch);
        let layouts = [layout(0)?, layout(1)?, layout(2)?];
        let aligned = [0, 1, 2].map(|i| alignment(&gemm.operands[i], types[i]));
        let preference = Preference::new(aligned)?;
        let mut found = Vec::<sys::cublasLtMatmulHeuristicResult_t>::with_capacity(CHOICES);
        let mut count: c_int = 0;
        // SAFETY: all handles are alive, and `found` has room for as many results as are asked for.
        let status = unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                desc.0,
                layouts[0].0,
                layouts[1].0,
                layouts[2].0,
                layouts[2].0,
                preference.0,
                CHOICES as c_int,
                found.as_mut_ptr(),
                &mut count,
            )
        };
        status.result()?;
        // SAFETY: the library has written `count` results, at most as many as were asked for.
        unsafe { found.set_len(count.clamp(0, CHOICES as c_int) as usize) };
        let works = |f: &sys::cublasLtMatmulHeuristicResult_t| f.state.result().is_ok();
        let algorithms: Vec<_> = found.iter().filter(|f| works(f)).map(|f| f.algo).collect();
        if algorithms.is_empty() {
            return Err(result::CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED));
        }
        Ok(Planned { desc, layouts, alpha: gemm.alpha, beta: gemm.beta, algorithms })
    }

    /// Queues a product, `[A, B, C]` at these addresses, by its first algorithm.
    ///
    /// # Safety
    /// `Product::check` passed for the buffers that the addresses are the starts of, and they
    /// are on this library's device until the stream has come past.
    pub unsafe fn run(&self, planned: &Planned, product: &Product, pointers: [u64; 3]) -> Result<()> {
        // SAFETY: as the caller says; a planned product has at least one algorithm.
        unsafe { self.run_by(planned, 0, product, pointers) }
    }

    /// # Safety
    /// As for [`Library::run`], and there is an algorithm of that number.
    unsafe fn run_by(&self, p: &Planned, choice: usize, product: &Product, at: [u64; 3]) -> Result<()> {
        let bytes = p.layouts.each_ref().map(|l| l.1);
        let [a, b, c] =
            [(at[1], product.b, bytes[0]), (at[0], product.a, bytes[1]), (at[2], product.c, bytes[2])]
                .map(|(start, operand, bytes)| start + (operand.offset * bytes) as u64);
        let workspace = self.workspace.device_ptr(&self.stream).0;
        // SAFETY: every operand lies in its buffer, the descriptors were made of the same
        // product, and one stream runs everything that uses the workspace.
        let done = unsafe {
            result::matmul(
                self.handle,
                p.desc.0,
                (&raw const p.alpha).cast(),
                (&raw const p.beta).cast(),
                a as *const c_void,
                p.layouts[0].0,
                b as *const c_void,
                p.layouts[1].0,
                c as *const c_void,
                p.layouts[2].0,
                c as *mut c_void,
                p.layouts[2].0,
                &raw const p.algorithms[choice],
                workspace as *mut c_void,
                WORKSPACE,
                self.stream.cu_stream().cast(),
            )
        };
        done.map_err(failed("a product by cuBLASLt"))
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        // SAFETY: nothing uses the handle any more. An error has nobody to go to.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

/// Measures every algorithm that was proposed for a product, caches cold, and keeps the fastest.
///
/// # Safety
/// As for [`Library::run`].
pub unsafe fn choose(
    device: &mut Device,
    planned: &mut Planned,
    product: &Product,
    pointers: [u64; 3],
) -> Result<()> {
    let mut best = (f64::INFINITY, 0);
    for choice in 0..planned.algorithms.len() {
        let mut once = || {
            // SAFETY: as the caller says.
            device.cold(|device| unsafe { device.lt.run_by(planned, choice, product, pointers) })
        };
        // The first run loads the code; an algorithm that refuses is none.
        let Ok(_) = once() else { continue };
        for _ in 0..TRIALS {
            let seconds = once()?;
            if seconds < best.0 {
                best = (seconds, choice);
            }
        }
    }
    if best.0.is_infinite() {
        return Err(Error::Device(format!("cuBLASLt runs none of its algorithms for {product:?}")));
    }
    planned.algorithms = vec![planned.algorithms[best.1]];
    Ok(())
}

/// What an operand's address is a multiple of; steps and widths the library knows itself.
fn alignment(operand: &Operand, of: Type) -> u32 {
    let bytes = operand.offset * bytes(of);
    if bytes == 0 { ALIGNED as u32 } else { 1 << bytes.trailing_zeros().min(ALIGNED.trailing_zeros()) }
}

const fn bytes(of: Type) -> usize {
    match of {
        Type::CUDA_R_32F => size_of::<f32>(),
        Type::CUDA_R_16BF => size_of::<bf16>(),
        _ => size_of::<f16>(),
    }
}

/// How the operands are read, and what sums are made in.
struct Desc(sys::cublasLtMatmulDesc_t);

impl Desc {
    fn new(a_transposed: bool, b_transposed: bool) -> Result<Self, result::CublasError> {
        // Float32 sums, never TF32: an f32 product keeps every bit of its operands.
        let kind = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let desc = Self(result::create_matmul_desc(kind, Type::CUDA_R_32F)?);
        let sides = [
            (DescAttribute::CUBLASLT_MATMUL_DESC_TRANSA, a_transposed),
            (DescAttribute::CUBLASLT_MATMUL_DESC_TRANSB, b_transposed),
        ];
        for (attribute, transposed) in sides {
            let value = i32::from(transposed); // CUBLAS_OP_N or CUBLAS_OP_T
            // SAFETY: the descriptor is alive, and the attribute takes four bytes.
            unsafe { result::set_matmul_desc_attribute(desc.0, attribute, (&raw const value).cast(), 4) }?;
        }
        Ok(desc)
    }
}

impl Drop for Desc {
    fn drop(&mut self) {
        // SAFETY: this was its only owner.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

/// An operand as it is stored, with the bytes of a number.
struct Layout(sys::cublasLtMatrixLayout_t, usize);

impl Layout {
    fn new(
        of: Type,
        (rows, cols): (usize, usize),
        operand: &Operand,
        batch: usize,
    ) -> Result<Self, result::CublasError> {
        let raw = result::create_matrix_layout(of, rows as u64, cols as u64, operand.width as i64)?;
        let layout = Self(raw, bytes(of));
        let (count, step) = (batch as i32, operand.step as i64);
        let set = |attribute, value: *const c_void, size| {
            // SAFETY: the layout is alive, and the value as long as the attribute takes.
            unsafe { result::set_matrix_layout_attribute(layout.0, attribute, value, size) }
        };
        set(LayoutAttribute::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, (&raw const count).cast(), 4)?;
        set(LayoutAttribute::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, (&raw const step).cast(), 8)?;
        Ok(layout)
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: this was its only owner.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

/// What the heuristic may propose.
struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    /// Any algorithm within the workspace, for operands so aligned.
    fn new([a, b, c]: [u32; 3]) -> Result<Self, result::CublasError> {
        let preference = Self(result::create_matmul_pref()?);
        let set = |attribute, value: *const c_void, size| {
            // SAFETY: the preference is alive, and the value as long as the attribute takes.
            unsafe { result::set_matmul_pref_attribute(preference.0, attribute, value, size) }
        };
        let workspace = WORKSPACE as u64;
        set(PrefAttribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, (&raw const workspace).cast(), 8)?;
        for (attribute, value) in [
            (PrefAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, a),
            (PrefAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, b),
            (PrefAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, c),
            (PrefAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, c),
        ] {
            set(attribute, (&raw const value).cast(), 4)?;
        }
        Ok(preference)
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: this was its only owner.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}
