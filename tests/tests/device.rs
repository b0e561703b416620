//! The suite on the CUDA backend: on the kernels' emulation, and on a GPU where there is one.

#[cfg(feature = "emulate")]
mod emulated {
    use half::{bf16, f16};
    use kron_core::cuda::{Cuda, Emulated};
    use kron_tests::cases::{self, Case};
    use kron_tests::suite;

    fn engine() -> Cuda<Emulated> {
        Cuda::with(Emulated::new())
    }

    /// An emulated thread takes thousands of times as long as a GPU's: the tallest cases are for others.
    fn below(limit: usize) -> Vec<Case> {
        cases::all().into_iter().filter(|c| c.rows.iter().all(|&rows| rows < limit)).collect()
    }

    #[test]
    fn f32_agrees_with_the_oracle() {
        suite::agrees_with_the_oracle::<f32>(&[engine()], &below(3000));
    }

    #[test]
    fn f16_agrees_with_the_oracle() {
        suite::agrees_with_the_oracle::<f16>(&[engine()], &below(1000));
    }

    #[test]
    fn bf16_agrees_with_the_oracle() {
        suite::agrees_with_the_oracle::<bf16>(&[engine()], &below(1000));
    }

    #[test]
    fn merge_agrees_with_the_oracle() {
        suite::merge_agrees_with_the_oracle::<f32>(&engine(), &cases::all());
        suite::merge_agrees_with_the_oracle::<f16>(&engine(), &cases::all());
        suite::merge_agrees_with_the_oracle::<bf16>(&engine(), &cases::all());
    }

    #[test]
    fn zero_rows_change_nothing() {
        suite::zero_rows_change_nothing(&engine());
    }
}

#[cfg(feature = "cuda")]
mod gpu {
    use half::{bf16, f16};
    use kron_core::Cuda;
    use kron_tests::{cases, suite};

    #[test]
    fn gpu_agrees_with_the_oracle() {
        let on = match Cuda::new(0) {
            Ok(on) => [on],
            Err(e) => return eprintln!("skipped: {e}"),
        };
        suite::agrees_with_the_oracle::<f32>(&on, &cases::all());
        suite::agrees_with_the_oracle::<f16>(&on, &cases::all());
        suite::agrees_with_the_oracle::<bf16>(&on, &cases::all());
        suite::merge_agrees_with_the_oracle::<f32>(&on[0], &cases::all());
        suite::merge_agrees_with_the_oracle::<f16>(&on[0], &cases::all());
        suite::merge_agrees_with_the_oracle::<bf16>(&on[0], &cases::all());
        suite::zero_rows_change_nothing(&on[0]);
    }

    /// No driver, or a device that is not there: an error that says so, and no panic.
    #[test]
    fn a_missing_device_is_an_error() {
        let message = Cuda::new(1 << 20).expect_err("no machine has so many").to_string();
        assert!(["driver", "does not exist"].iter().any(|word| message.contains(word)), "{message}");
    }
}
