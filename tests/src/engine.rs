//! [`Engine`]: a backend under test and the memory it computes in.

use kron_core::{Backend, Cpu, Element};
use ndarray::{ArrayView2, ArrayViewMut2};

use crate::guard::{Guarded, Layout};

/// A backend with a way to bring guarded buffers to it, zones and all, and back.
pub trait Engine: std::fmt::Debug {
    /// The backend.
    type Backend: Backend;
    /// A buffer where the backend computes.
    type Memory<T: Element>;

    /// The backend.
    fn backend(&self) -> &Self::Backend;
    /// Brings a buffer there.
    fn place<T: Element>(&self, buffer: Guarded<T>) -> Self::Memory<T>;
    /// Brings it back, after the calls that use it.
    fn fetch<T: Element>(&self, memory: Self::Memory<T>) -> Guarded<T>;

    /// Float32 numbers as the backend reads them.
    fn floats<'a>(&self, memory: &'a Self::Memory<f32>) -> <Self::Backend as Backend>::Floats<'a>;
    /// Float32 numbers as the backend writes them.
    fn floats_mut<'a>(&self, memory: &'a mut Self::Memory<f32>) -> <Self::Backend as Backend>::FloatsMut<'a>;
    /// A matrix as the backend reads it.
    fn rows<'a, E: Element>(
        &self,
        memory: &'a Self::Memory<E>,
        layout: Layout,
    ) -> <Self::Backend as Backend>::Rows<'a, E>;
    /// A matrix as the backend writes it.
    fn rows_mut<'a, E: Element>(
        &self,
        memory: &'a mut Self::Memory<E>,
        layout: Layout,
    ) -> <Self::Backend as Backend>::RowsMut<'a, E>;
}

impl Engine for Cpu {
    type Backend = Cpu;
    type Memory<T: Element> = Guarded<T>;

    fn backend(&self) -> &Cpu {
        self
    }
    fn place<T: Element>(&self, buffer: Guarded<T>) -> Guarded<T> {
        buffer
    }
    fn fetch<T: Element>(&self, memory: Guarded<T>) -> Guarded<T> {
        memory
    }
    fn floats<'a>(&self, memory: &'a Guarded<f32>) -> &'a [f32] {
        memory.body()
    }
    fn floats_mut<'a>(&self, memory: &'a mut Guarded<f32>) -> &'a mut [f32] {
        memory.body_mut()
    }
    fn rows<'a, E: Element>(&self, memory: &'a Guarded<E>, layout: Layout) -> ArrayView2<'a, E> {
        layout.view(memory.body())
    }
    fn rows_mut<'a, E: Element>(&self, memory: &'a mut Guarded<E>, layout: Layout) -> ArrayViewMut2<'a, E> {
        layout.view_mut(memory.body_mut())
    }
}

/// The emulated kernels, on host memory aligned as a device's is.
#[cfg(feature = "emulate")]
mod emulated {
    use kron_core::Element;
    use kron_kernels::{Cuda, DeviceSlice, DeviceSliceMut, Emulated, Rows, RowsMut};

    use super::Engine;
    use crate::guard::{Guarded, Layout};

    impl Engine for Cuda<Emulated> {
        type Backend = Self;
        type Memory<T: Element> = Guarded<T>;

        fn backend(&self) -> &Self {
            self
        }
        fn place<T: Element>(&self, buffer: Guarded<T>) -> Guarded<T> {
            buffer.aligned()
        }
        fn fetch<T: Element>(&self, memory: Guarded<T>) -> Guarded<T> {
            memory
        }
        fn floats<'a>(&self, memory: &'a Guarded<f32>) -> DeviceSlice<'a, f32> {
            DeviceSlice::host(memory.body())
        }
        fn floats_mut<'a>(&self, memory: &'a mut Guarded<f32>) -> DeviceSliceMut<'a, f32> {
            DeviceSliceMut::host(memory.body_mut())
        }
        fn rows<'a, E: Element>(&self, memory: &'a Guarded<E>, layout: Layout) -> Rows<'a, E> {
            let Layout { rows, stride, .. } = layout;
            Rows { data: DeviceSlice::host(memory.body()), rows, stride }
        }
        fn rows_mut<'a, E: Element>(&self, memory: &'a mut Guarded<E>, layout: Layout) -> RowsMut<'a, E> {
            let Layout { rows, stride, .. } = layout;
            RowsMut { data: DeviceSliceMut::host(memory.body_mut()), rows, stride }
        }
    }
}

/// A GPU: the buffers' zones lie in its memory too.
#[cfg(feature = "cuda")]
mod gpu {
    use std::ops::Range;

    use kron_core::Element;
    use kron_kernels::{Cuda, DeviceSlice, DeviceSliceMut, DeviceVec, Gpu, Rows, RowsMut};

    use super::Engine;
    use crate::guard::{Guarded, Layout};

    /// A guarded buffer in a device's memory.
    #[derive(Debug)]
    pub struct OnDevice<T> {
        host: Guarded<T>,
        device: DeviceVec<T>,
        body: Range<usize>,
    }

    impl<T: Element> OnDevice<T> {
        fn body(&self) -> DeviceSlice<'_, T> {
            self.device.slice().part(self.body.clone()).expect("the body lies inside")
        }
        fn body_mut(&mut self) -> DeviceSliceMut<'_, T> {
            self.device.slice_mut().part(self.body.clone()).expect("the body lies inside")
        }
    }

    impl Engine for Cuda<Gpu> {
        type Backend = Self;
        type Memory<T: Element> = OnDevice<T>;

        fn backend(&self) -> &Self {
            self
        }
        fn place<T: Element>(&self, buffer: Guarded<T>) -> OnDevice<T> {
            let mut host = buffer.aligned();
            let (all, body) = host.with_zones();
            let device = self.launcher().upload(all).unwrap_or_else(|e| panic!("upload: {e}"));
            OnDevice { host, device, body }
        }
        fn fetch<T: Element>(&self, memory: OnDevice<T>) -> Guarded<T> {
            let OnDevice { mut host, device, .. } = memory;
            device.read(host.with_zones().0).unwrap_or_else(|e| panic!("download: {e}"));
            host
        }
        fn floats<'a>(&self, memory: &'a OnDevice<f32>) -> DeviceSlice<'a, f32> {
            memory.body()
        }
        fn floats_mut<'a>(&self, memory: &'a mut OnDevice<f32>) -> DeviceSliceMut<'a, f32> {
            memory.body_mut()
        }
        fn rows<'a, E: Element>(&self, memory: &'a OnDevice<E>, layout: Layout) -> Rows<'a, E> {
            Rows { data: memory.body(), rows: layout.rows, stride: layout.stride }
        }
        fn rows_mut<'a, E: Element>(&self, memory: &'a mut OnDevice<E>, layout: Layout) -> RowsMut<'a, E> {
            RowsMut { rows: layout.rows, stride: layout.stride, data: memory.body_mut() }
        }
    }
}
