//! Products by cuBLASLt: sums in float32 for every type, any of its algorithms.

use std::ffi::{c_int, c_void};
use std::rc::Rc;
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

/// Bytes of scratch that an algorithm may use: NVIDIA's recommendation for its largest GPUs.
const WORKSPACE: usize = 32 << 20;
/// Number of algorithms that the heuristic is asked for.
const CHOICES: usize = 8;
/// Number of measurements of each algorithm.
const TRIALS: usize = 3;
/// Alignment of every allocation, in bytes.
const ALIGNED: usize = 256;

/// The type of an operand's elements.
pub type Type = sys::cudaDataType;

/// Returns the type of activations.
pub const fn type_of(dtype: kron_core::Dtype) -> Type {
    match dtype {
        kron_core::Dtype::F32 => Type::CUDA_R_32F,
        kron_core::Dtype::F16 => Type::CUDA_R_16F,
        kron_core::Dtype::Bf16 => Type::CUDA_R_16BF,
    }
}

/// The library on one stream.
pub struct CublasLt {
    handle: sys::cublasLtHandle_t,
    stream: Arc<CudaStream>,
    workspace: CudaSlice<u8>,
}

/// A product with the library's algorithms for it.
pub struct Planned {
    library: Rc<CublasLt>,
    pub product: Product,
    desc: Desc,
    layouts: [Layout; 3],
    alpha: f32,
    beta: f32,
    /// The heuristic's proposals, its best guess first.
    algorithms: Vec<sys::cublasLtMatmulAlgo_t>,
}

impl CublasLt {
    /// Opens the library for a stream of a device whose context is current.
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
    /// Fails for a product that the library does not compute.
    pub fn plan(self: &Rc<Self>, product: &Product, types: [Type; 3]) -> Result<Planned> {
        self.ask(product, types).map_err(|e| Error::Device(format!("cuBLASLt reports {e:?} for {product:?}")))
    }

    fn ask(self: &Rc<Self>, product: &Product, [a, b, c]: [Type; 3]) -> Result<Planned, result::CublasError> {
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
        Ok(Planned {
            library: Rc::clone(self),
            product: *product,
            desc,
            layouts,
            alpha: gemm.alpha,
            beta: gemm.beta,
            algorithms,
        })
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        // SAFETY: nothing uses the handle any more. An error cannot be returned from here.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

impl Planned {
    /// Queues the product, `[A, B, C]` at these addresses, by its first algorithm.
    ///
    /// # Safety
    /// `Product::check` passed for the buffers that the addresses are the starts of, and they
    /// stay allocated on the library's device until the stream has run the product.
    pub unsafe fn run(&self, pointers: [u64; 3]) -> Result<()> {
        // SAFETY: as the caller promises; a planned product has at least one algorithm.
        unsafe { self.run_by(0, pointers) }
    }

    /// Measures every proposed algorithm with cold caches and keeps the fastest.
    ///
    /// # Safety
    /// As for [`Planned::run`].
    pub unsafe fn tune(&mut self, device: &mut Device, pointers: [u64; 3]) -> Result<()> {
        let mut best = (f64::INFINITY, 0);
        for choice in 0..self.algorithms.len() {
            // SAFETY: as the caller promises, and `choice` is an algorithm.
            let mut once = || device.cold(|| unsafe { self.run_by(choice, pointers) });
            // The first run loads the code; an algorithm that refuses is left out.
            let Ok(_) = once() else { continue };
            for _ in 0..TRIALS {
                let seconds = once()?;
                if seconds < best.0 {
                    best = (seconds, choice);
                }
            }
        }
        if best.0.is_infinite() {
            return Err(Error::Device(format!("cuBLASLt runs no algorithm for {:?}", self.product)));
        }
        self.algorithms = vec![self.algorithms[best.1]];
        Ok(())
    }

    /// Queues the product by one of its algorithms.
    ///
    /// # Safety
    /// As for [`Planned::run`], and there is an algorithm of that number.
    unsafe fn run_by(&self, choice: usize, at: [u64; 3]) -> Result<()> {
        let (library, product) = (&self.library, &self.product);
        let bytes = self.layouts.each_ref().map(|l| l.1);
        let [a, b, c] =
            [(at[1], product.b, bytes[0]), (at[0], product.a, bytes[1]), (at[2], product.c, bytes[2])]
                .map(|(start, operand, bytes)| start + (operand.offset * bytes) as u64);
        let workspace = library.workspace.device_ptr(&library.stream).0;
        // SAFETY: every operand lies in its buffer, the descriptors were made of the same
        // product, and one stream runs everything that uses the workspace.
        let done = unsafe {
            result::matmul(
                library.handle,
                self.desc.0,
                (&raw const self.alpha).cast(),
                (&raw const self.beta).cast(),
                a as *const c_void,
                self.layouts[0].0,
                b as *const c_void,
                self.layouts[1].0,
                c as *const c_void,
                self.layouts[2].0,
                c as *mut c_void,
                self.layouts[2].0,
                &raw const self.algorithms[choice],
                workspace as *mut c_void,
                WORKSPACE,
                library.stream.cu_stream().cast(),
            )
        };
        done.map_err(failed("a product by cuBLASLt"))
    }
}

/// Returns the alignment of an operand's address; the library knows steps and widths itself.
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

/// The transpositions of the operands, and the type of the sums.
struct Desc(sys::cublasLtMatmulDesc_t);

impl Desc {
    fn new(a_transposed: bool, b_transposed: bool) -> Result<Self, result::CublasError> {
        // float32 sums, never TF32, so that an f32 product uses every bit of its operands.
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

/// An operand as it is stored, and the bytes of an element.
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

/// The limits of the heuristic's proposals.
struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    /// Allows any algorithm within the workspace, for operands of these alignments.
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
