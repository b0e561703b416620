//! Tensors of Flex as the matrices of kron-core, without a copy where their rows have one stride.

use burn::backend::flex::{FlexTensor, Layout};
use burn::tensor::{Bytes, Element as BurnElement, Shape};
use kron_core::Element;
use ndarray::{ArrayView2, ArrayViewMut2, ShapeBuilder};

/// Element type of both libraries.
pub(crate) trait Activation: Element + BurnElement + bytemuck::Pod {}

impl Activation for f32 {}
impl Activation for half::f16 {}
impl Activation for half::bf16 {}

/// Calls a function for the element type of a dtype that was checked before.
macro_rules! with_activation {
    ($dtype:expr, $E:ident => $body:expr) => {
        match $dtype {
            burn::tensor::DType::F32 => {
                type $E = f32;
                $body
            }
            burn::tensor::DType::F16 => {
                type $E = half::f16;
                $body
            }
            burn::tensor::DType::BF16 => {
                type $E = half::bf16;
                $body
            }
            dtype => unreachable!("{dtype:?} was refused before"),
        }
    };
}
pub(crate) use with_activation;

/// Rows, columns and the stride of a row, if all axes but the last merge into one.
fn matrix(layout: &Layout) -> Option<(usize, usize, usize)> {
    let (shape, strides) = (layout.shape(), layout.strides());
    let last = shape.num_dims().checked_sub(1)?;
    let columns = shape[last];
    let mut rows = 1;
    let mut stride = columns as isize;
    for axis in (0..last).rev().filter(|&axis| shape[axis] != 1) {
        if rows == 1 {
            stride = strides[axis];
        } else if strides[axis] != stride * rows as isize {
            return None;
        }
        rows *= shape[axis];
    }
    if rows == 0 || columns == 0 {
        return Some((rows, columns, columns));
    }
    let contiguous = columns == 1 || strides[last] == 1;
    (contiguous && stride >= columns as isize).then_some((rows, columns, stride as usize))
}

/// Returns the tensor itself if it is a matrix of rows, and a contiguous copy otherwise.
pub(crate) fn in_rows(tensor: FlexTensor) -> FlexTensor {
    if matrix(tensor.layout()).is_some() { tensor } else { tensor.to_contiguous() }
}

/// Returns the tensor itself if it is whole, contiguous and held once, and a copy of its own otherwise.
pub(crate) fn owned<E: Activation>(tensor: FlexTensor) -> FlexTensor {
    let whole = tensor.is_contiguous() && tensor.storage::<E>().len() == tensor.layout().num_elements();
    if whole && tensor.is_unique() {
        return tensor;
    }
    let copy = tensor.to_contiguous();
    drop(tensor);
    if copy.is_unique() {
        return copy;
    }
    let values = copy.as_slice::<E>().expect("contiguous").to_vec();
    tensor_of(values, copy.layout().shape().clone())
}

/// Makes a view of n × d of a tensor that [`in_rows`] returned.
pub(crate) fn view<E: Activation>(tensor: &FlexTensor) -> ArrayView2<'_, E> {
    let (rows, columns, stride) = matrix(tensor.layout()).expect("a matrix of rows");
    let layout = tensor.layout();
    let values = tensor.storage::<E>();
    let shape = (rows, columns).strides((stride, 1));
    if rows * columns == 0 {
        return ArrayView2::from_shape((rows, columns), &values[..0]).expect("an empty matrix");
    }
    ArrayView2::from_shape(shape, &values[layout.start_offset()..]).expect("a layout inside its storage")
}

/// Makes a view of n × d of a tensor that [`owned`] returned.
pub(crate) fn view_mut<E: Activation>(tensor: &mut FlexTensor, columns: usize) -> ArrayViewMut2<'_, E> {
    let values = tensor.storage_mut::<E>();
    let rows = values.len() / columns;
    ArrayViewMut2::from_shape((rows, columns), values).expect("whole and contiguous")
}

/// Values of θ, which is contiguous.
pub(crate) fn floats(theta: &FlexTensor) -> &[f32] {
    theta.as_slice().expect("θ is contiguous float32")
}

/// Makes a contiguous tensor of these values.
pub(crate) fn tensor_of<E: Activation>(values: Vec<E>, shape: Shape) -> FlexTensor {
    FlexTensor::new(Bytes::from_elems(values), Layout::contiguous(shape), E::dtype())
}
